"""Gets the raw file of a published checkpoint from the first of its sources that has it: a mirror, the Hub, a URL."""

import hashlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from typing import Literal
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass, url2pathname

from xcit.errors import XCiTError
from xcit.weights.download import DownloadError, DownloadProgress, download, is_intact

__all__ = ["DownloadError", "DownloadProgress", "FetchError", "Source", "cache_dir", "download", "obtain"]

# Together well under the 5 seconds after which a machine without a network must have its answer.
_PROBE_SECONDS = 2.0
_HUB_SECONDS = 5.0
_OFFLINE_SWITCHES = ("XCIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class FetchError(XCiTError):
    """No source had the file: the first line says what failed, the next ones why, the last one what to do."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place where a checkpoint is published.

    `location` is a repository of the Hugging Face Hub ("owner/name") or an http, https or file URL, `filename` the
    file's path in the repository or the last part of the URL, `sha256` the hex digest of the file or at least its
    first 8 digits, where known.
    """

    kind: Literal["huggingface", "url"]
    location: str
    filename: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        steps = PurePosixPath(self.filename).parts
        # The name becomes a path on this disk.
        if not steps or ".." in steps or steps[0] == "/" or "\\" in self.filename:
            raise XCiTError(f"{self.filename!r} is no file name, in the source {self.location}")
        if self.kind == "url" and len(steps) > 1:
            raise XCiTError(f"{self.filename!r} must be the last part of the URL {self.location}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", self.sha256):
            raise XCiTError(f"{self.sha256!r} is no SHA-256 in hex (8 to 64 digits), in the source {self.location}")

    @property
    def label(self) -> str:
        """A short readable name for messages."""
        return f"Hugging Face {self.location}" if self.kind == "huggingface" else self.location


def cache_dir() -> Path:
    """The folder that keeps weights: `$XCIT_CACHE`, else `$XDG_CACHE_HOME/xcit`, else `~/.cache/xcit`."""
    if own := os.environ.get("XCIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xcit"


def obtain(
    name: str, sources: Sequence[Source], directory: Path, *, progress: DownloadProgress | None = None
) -> tuple[Path, Source | None]:
    """Returns the raw file of the checkpoint `name`: found on this machine, else downloaded.

    Looks first where no network is needed: the folder `XCIT_MIRROR`, then `directory` and the Hub's own cache, for
    each source. Then come the URL `XCIT_MIRROR` and each source in order. `XCIT_OFFLINE=1` or `HF_HUB_OFFLINE=1`
    leave out the second half. A file whose known SHA-256 does not match is never returned.

    Args:
        name: The checkpoint's name; a mirror may hold it as `<name>.safetensors`.
        sources: Where it is published, best first. A mirror may hold any of them under its published name.
        directory: Where downloads go. Files of a mirror folder and of the Hub's cache are used in place.
        progress: Called while a file arrives.

    Returns:
        The path, and the source whose file it is (None for a mirror's `<name>.safetensors`).

    Raises:
        FetchError: No source has the file; without a network after about two seconds.
    """
    reasons: list[str] = []
    mirror = os.environ.get("XCIT_MIRROR", "")
    folder = _as_folder(mirror)
    if folder is not None and (found := _from_folder(folder, name, sources, reasons)):
        return found
    for source in sources:
        if path := _local_copy(source, directory):
            return path, source

    switch = next(
        (key for key in _OFFLINE_SWITCHES if os.environ.get(key, "").lower() in ("1", "true", "yes", "on")), ""
    )
    remote = {source: _contact(source) for source in sources}
    mirror_url = mirror if folder is None else ""
    if switch:
        blocked = {url: f"not asked, {switch} is set" for url in (mirror_url, *remote.values()) if _is_remote(url)}
    else:
        blocked = _unreachable(url for url in (mirror_url, *remote.values()) if _is_remote(url))
    if mirror_url and (found := _from_mirror(mirror_url, name, sources, directory, blocked, progress, reasons)):
        return found
    for source, url in remote.items():
        try:
            if url in blocked:
                raise XCiTError(blocked[url])
            return _from_source(source, directory, progress), source
        except XCiTError as error:
            reasons.append(f"{source.label}: {str(error).removeprefix(f'{source.label}: ')}")
    lines = "".join(f"  {reason}\n" for reason in reasons)
    raise FetchError(
        f"cannot get the weights of {name}:\n{lines}"
        f"Set XCIT_MIRROR to a folder or URL with the files, run `xcit fetch {name} --to DIR` on a connected machine, "
        "or pass pretrained=PATH"
    )


# ---- mirrors


def _as_folder(mirror: str) -> Path | None:
    """The mirror's path on this machine; None when it is remote or not set."""
    if mirror.startswith("file:"):
        return Path(url2pathname(urlsplit(mirror).path))
    return Path(mirror).expanduser() if mirror and "://" not in mirror else None


def _mirror_names(name: str, sources: Sequence[Source]) -> dict[str, Source | None]:
    """The file names under which a mirror may hold the checkpoint, best first, each with the source it stands for."""
    names: dict[str, Source | None] = {f"{name}.safetensors": None}
    for source in sources:
        if source.kind == "url":
            names.setdefault(source.filename, source)
        else:
            suffix = PurePosixPath(source.filename).suffix
            names.setdefault(f"{source.location.rpartition('/')[2]}{suffix}", source)
            names.setdefault(f"{source.location}/{source.filename}", source)
    return names


def _from_folder(
    folder: Path, name: str, sources: Sequence[Source], reasons: list[str]
) -> tuple[Path, Source | None] | None:
    names = _mirror_names(name, sources)
    label = f"mirror {folder} (XCIT_MIRROR)"
    for candidate, source in names.items():
        path = folder / candidate
        if is_intact(path, source.sha256 if source else None):
            return path, source
        if path.is_file():
            reasons.append(f"{label}: {candidate} has the wrong SHA-256")
    reasons.append(f"{label}: none of {', '.join(names)}" if folder.is_dir() else f"{label}: no such folder")
    return None


def _from_mirror(
    mirror: str,
    name: str,
    sources: Sequence[Source],
    directory: Path,
    blocked: dict[str, str],
    progress: DownloadProgress | None,
    reasons: list[str],
) -> tuple[Path, Source | None] | None:
    names = _mirror_names(name, sources)
    label = f"mirror {mirror} (XCIT_MIRROR)"
    if mirror in blocked:
        reasons.append(f"{label}: {blocked[mirror]}")
        return None
    missing = []
    for candidate, source in names.items():
        url = f"{mirror.rstrip('/')}/{quote(candidate)}"
        destination = _destination(directory, url, PurePosixPath(candidate).name)
        try:
            return download(url, destination, sha256=source.sha256 if source else None, progress=progress), source
        except DownloadError as error:
            if error.status in (403, 404):  # object stores say 403 for a file that is not there
                missing.append(candidate)
                continue
            reasons.append(f"{label}: {error}")
            if error.status is None:
                return None
    reasons.append(f"{label}: none of {', '.join(missing)}")
    return None


# ---- sources


def _destination(directory: Path, url: str, filename: str) -> Path:
    """A path of its own for each URL: two sites may well publish the same file name."""
    return directory / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{filename}"


def _source_path(source: Source, directory: Path) -> Path:
    if source.kind == "url":
        return _destination(directory, source.location, source.filename)
    return directory / f"{source.location}/{source.filename}".replace("/", "--")


def _contact(source: Source) -> str:
    """The URL whose host must answer before the source is tried."""
    if source.kind == "url":
        return source.location
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _local_copy(source: Source, directory: Path) -> Path | None:
    """The source's file as an earlier download left it, in `directory` or in the cache that the Hub's clients share."""
    path = _source_path(source, directory)
    if is_intact(path, source.sha256):
        return path
    if source.kind == "huggingface":
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(source.location, source.filename)
        except ValueError:  # not a repository's name: the download will say so
            return None
        if isinstance(cached, str):
            # There the file is a link to a blob that is named after its digest, if it is a large one.
            copy = Path(cached)
            blob = copy.readlink().name if copy.is_symlink() else None
            if is_intact(copy, _as_digest(blob)) and is_intact(copy, source.sha256):
                return copy
    return None


def _from_source(source: Source, directory: Path, progress: DownloadProgress | None) -> Path:
    path = _source_path(source, directory)
    if source.kind == "url":
        return download(source.location, path, sha256=source.sha256, progress=progress)

    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url

    # The Hub's client names the file, its version and its digest, and knows the user's token. Its own download can
    # neither resume nor report progress in every supported version, and would keep a second copy of each file.
    endpoint = _contact(source)
    try:
        with _quiet_hub():
            url = hf_hub_url(source.location, source.filename, endpoint=endpoint)
            metadata = get_hf_file_metadata(url, timeout=_HUB_SECONDS)
            url = hf_hub_url(source.location, source.filename, revision=metadata.commit_hash, endpoint=endpoint)
            token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # its own and those of its HTTP library, which differs between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP {status}" if status else (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise XCiTError(f"{reason} ({endpoint})") from error
    digest = _as_digest(metadata.etag)
    if digest and source.sha256 and not digest.startswith(source.sha256.lower()):
        raise XCiTError(f"{url}: wrong file, expected SHA-256 {source.sha256.lower()}, the Hub has {digest}")
    return download(
        url,
        path,
        sha256=digest or source.sha256,
        progress=progress,
        what=source.label,
        headers={"Authorization": f"Bearer {token}"} if token else None,
    )


def _as_digest(etag: str | None) -> str | None:
    """The ETag when it is a SHA-256: the Hub's ETag of a large file (a small one has its git hash)."""
    return etag if etag and re.fullmatch("[0-9a-f]{64}", etag) else None


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Holds back the client's advice to log in, which says nothing about a public file."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ---- is anybody there?


def _is_remote(url: str) -> bool:
    return bool(url) and urlsplit(url).scheme != "file"


@dataclass(frozen=True)
class _Door:
    """Where a request connects to first, the server or a proxy; `label` names it in messages."""

    label: str
    host: str
    port: int


def _unreachable(urls: Iterable[str]) -> dict[str, str]:
    """The URLs whose host does not accept a connection within two seconds, all asked at once, each with the reason."""
    failures: dict[str, str] = {}
    doors: dict[str, _Door] = {}
    for url in urls:
        try:
            doors[url] = _door(url)
        except ValueError as error:
            failures[url] = f"not a URL that can be asked ({error})"
    verdicts = {door: f"no answer from {door.label} within {_PROBE_SECONDS:g} s" for door in doors.values()}
    # Each host is asked over IPv4 and IPv6 at once, for many a network has only one that works.
    waiting = {(door, family) for door in verdicts for family in (socket.AF_INET, socket.AF_INET6)}
    answers: SimpleQueue[tuple[_Door, socket.AddressFamily, str]] = SimpleQueue()
    for door, family in waiting:
        # A name look-up without a network can last half a minute and cannot be stopped: its thread is left behind.
        threading.Thread(target=_knock, args=(door, family, answers), daemon=True).start()
    deadline = time.monotonic() + _PROBE_SECONDS
    try:
        while waiting:
            door, family, verdict = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            waiting.discard((door, family))
            if not verdict:
                waiting -= {(door, socket.AF_INET), (door, socket.AF_INET6)}
            if verdicts[door] and (not verdict or family == socket.AF_INET):
                verdicts[door] = verdict
    except Empty:
        pass
    return failures | {url: verdicts[door] for url, door in doors.items() if verdicts[door]}


def _door(url: str) -> _Door:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must start with http:// or https:// and a host")
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return _Door(parts.hostname, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    proxy_parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    host = proxy_parts.hostname or ""
    return _Door(f"proxy {host}", host, proxy_parts.port or (443 if proxy_parts.scheme == "https" else 80))


def _knock(
    door: _Door, family: socket.AddressFamily, answers: SimpleQueue[tuple[_Door, socket.AddressFamily, str]]
) -> None:
    try:
        address = socket.getaddrinfo(door.host, door.port, family, socket.SOCK_STREAM)[0][4]
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PROBE_SECONDS)
            connection.connect(address)
        verdict = ""
    except TimeoutError:
        return  # nobody waits any more
    except (OSError, UnicodeError) as error:
        verdict = f"cannot reach {door.label}: {getattr(error, 'strerror', None) or error}"
    answers.put((door, family, verdict))
