"""Gets the file of a published checkpoint from the first of its sources that has it: a mirror, the Hub, a URL.

huggingface_hub names a file of the Hub, its version and its digest, and knows the user's token. The bytes of all files
come by `download`: resumed, verified, whole or not at all. The Hub's own download checks no digest, keeps a second copy
of each file, and without a network tries for more than a minute.
"""

import errno
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection, InvalidURL
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any, Literal, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener, url2pathname

from xcit.errors import XCiTError
from xcit.regular import expanded

DownloadProgress = Callable[[str, int, int | None], None]
"""Called as `progress(what, bytes_done, bytes_in_all or None)` while a file arrives."""

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20

_PATIENCE_SECONDS = 2.0
"""For the first connection; each that can't be had halves it, so that no network is noticed within twice this time."""

_OFFLINE_SWITCHES = ("XCIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")

_LATE = "the server did not answer in time"

_ABSENT = (403, 404)
"""What servers answer for a file that they do not have; object stores say 403."""


class FetchError(XCiTError):
    """No source had the file: the first line says what failed, the next ones why, the last one what to do."""


class DownloadError(XCiTError):
    """A download that failed. `status` is that of the server's answer, None when no usable answer came."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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
        return expanded(own, "set XCIT_CACHE to a folder that there is")
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "set XCIT_CACHE to a folder for weights") / "xcit"


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
        FetchError: No source has the file; without a network after less than five seconds.
    """
    mirror, names = os.environ.get("XCIT_MIRROR", ""), _mirror_names(name, sources)
    folder = _as_folder(mirror)
    label = f"mirror {folder or mirror} (XCIT_MIRROR)"
    reasons: list[str] = []
    if folder is not None:
        for candidate, published in names.items():
            path = folder / candidate
            if is_intact(path, published.sha256 if published else None):
                return path, published
            if path.is_file():
                reasons.append(f"{label}: {candidate} has the wrong SHA-256")
        reasons.append(f"{label}: none of {', '.join(names)}" if folder.is_dir() else f"{label}: no such folder")
    for source in sources:
        if copy := _local_copy(source, directory):
            return copy, source

    switch = next(
        (key for key in _OFFLINE_SWITCHES if os.environ.get(key, "").lower() in ("1", "true", "yes", "on")), ""
    )
    # What to ask, in order: a name for messages, and one or several files, each with the source that it stands for.
    asked = list[tuple[str, list[tuple[Source, Source | None]]]]()
    if mirror and folder is None:
        asked.append((label, [(_on_mirror(mirror, *pair), pair[1]) for pair in names.items()]))
    asked += [(source.label, [(source, source)]) for source in sources]
    patience = _PATIENCE_SECONDS
    for label, files in asked:
        missing = []
        for place, published in files:
            try:
                if switch and not place.location.startswith("file:"):
                    raise DownloadError(f"not asked, {switch} is set")
                return _bring(place, directory, progress, patience), published
            except DownloadError as error:
                if place is not published and error.status in _ABSENT:
                    missing.append(place.location.removeprefix(mirror).strip("/"))
                    continue
                reasons.append(f"{label}: {str(error).removeprefix(f'{place.label}: ')}")
                if error.status is None:  # nobody there: no use in asking for another name
                    patience /= 2
                    missing = []
                    break
        if missing:
            reasons.append(f"{label}: none of {', '.join(missing)}")
    lines = "".join(f"  {reason}\n" for reason in reasons)
    raise FetchError(
        f"cannot get the weights of {name}:\n{lines}"
        f"Set XCIT_MIRROR to a folder or URL with the files, run `xcit fetch {name} --to DIR` on a connected machine, "
        "or pass pretrained=PATH"
    )


# ---- places


def _as_folder(mirror: str) -> Path | None:
    """The mirror's path on this machine; None when it is remote or not set."""
    if mirror.startswith("file:"):
        return Path(url2pathname(urlsplit(mirror).path))
    return expanded(mirror, "set XCIT_MIRROR to a folder that there is") if mirror and "://" not in mirror else None


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


def _on_mirror(mirror: str, candidate: str, published: Source | None) -> Source:
    return Source(
        kind="url",
        location=f"{mirror.rstrip('/')}/{quote(candidate)}",
        filename=PurePosixPath(candidate).name,
        sha256=published.sha256 if published else None,
    )


def destination_of(url: str, directory: Path) -> Path:
    """A path of its own for each URL: many a site calls its file model.safetensors."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return directory / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"


def _source_path(source: Source, directory: Path) -> Path:
    if source.kind == "url":
        return destination_of(source.location, directory)
    return directory / f"{source.location}/{source.filename}".replace("/", "--")


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


def _bring(source: Source, directory: Path, progress: DownloadProgress | None, patience: float) -> Path:
    path = _source_path(source, directory)
    if source.kind == "url":
        return download(source.location, path, sha256=source.sha256, progress=progress, patience=patience)

    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        with _quiet_hub():
            url = hf_hub_url(source.location, source.filename, endpoint=endpoint)
            metadata = _in_time(lambda: get_hf_file_metadata(url, timeout=patience), patience)
            url = hf_hub_url(source.location, source.filename, revision=metadata.commit_hash, endpoint=endpoint)
            token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    except Exception as error:  # its own and those of its HTTP library, which differs between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP {status} ({endpoint})" if status else _unreached(urlsplit(endpoint).hostname, error)
        raise DownloadError(reason, status=status) from error
    digest = _as_digest(metadata.etag)
    if digest and source.sha256 and not digest.startswith(source.sha256.lower()):
        raise DownloadError(
            f"{url}: wrong file, expected SHA-256 {source.sha256.lower()}, the Hub has {digest}", status=200
        )
    return download(
        url,
        path,
        sha256=digest or source.sha256,
        progress=progress and (lambda _, done, total: progress(source.label, done, total)),
        patience=patience,
        headers={"Authorization": f"Bearer {token}"} if token else {},
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


# ---- one file


def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], object] = lambda _: None,
    progress: DownloadProgress | None = None,
    timeout: float = 20.0,
    patience: float = 10.0,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Brings the file at `url` to `destination`, unless it is there already.

    The bytes go to `<destination>.part` first. When that file is left from an earlier call, and the server still has
    the same file and can serve a part of it, only the rest is asked for. A second process that wants the same
    destination waits for the first, then finds the finished file.

    Args:
        url: An http, https or file URL. Proxies are taken from the environment, as `urllib` does.
        destination: Path of the finished file; missing folders are made.
        sha256: The file's hex digest or its first digits; a file with another digest is deleted.
        check: Called with the path of what has arrived, before it is in place; a file that it raises an `XCiTError` for
            is deleted.
        progress: Called while the file arrives.
        timeout: Seconds without a byte from the server that count as a broken connection.
        patience: Seconds within which a connection must be there, the look-up of the host's name included.
        headers: Further request headers, sent to the URL's own host only, never to where it redirects (a token).

    Returns:
        `destination`.

    Raises:
        DownloadError: The server cannot be reached or says no, redirects to an address without encryption from one
            with it, the connection broke twice, the file is wrong, or it cannot be written.
    """
    from filelock import FileLock  # a tenth of a second that only a download should cost

    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise DownloadError(f"{url}: not a URL that can be asked: only http, https and file URLs can be downloaded")
    name = unquote(urlsplit(url).path.rpartition("/")[2]) or url
    transfer = _Transfer(
        url=url,
        destination=destination,
        timeout=timeout,
        patience=patience,
        headers=headers,
        report=lambda done, total: None if progress is None else progress(name, done, total),
    )
    try:
        if is_intact(destination, sha256):
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{destination}.lock"):
            if not is_intact(destination, sha256):  # else another process finished it while we waited
                destination.unlink(missing_ok=True)
                transfer.run(sha256, check)
    except OSError as error:
        raise transfer.write_error(error, None) from error
    return destination


def is_intact(path: Path, sha256: str | None) -> bool:
    """Tells whether `path` is a file whose SHA-256 starts with the given hex digits (any file when none are given)."""
    return path.is_file() and (sha256 is None or _digest(path).startswith(sha256.lower()))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True, kw_only=True)
class _Transfer:
    """The way of one URL into one file; the caller holds the destination's lock."""

    url: str
    destination: Path
    timeout: float
    patience: float
    headers: Mapping[str, str]
    report: Callable[[int, int | None], None]

    @property
    def part(self) -> Path:
        """The bytes so far."""
        return self.destination.with_name(f"{self.destination.name}.part")

    @property
    def note(self) -> Path:
        """Which version of which URL the part belongs to."""
        return self.destination.with_name(f"{self.destination.name}.part.json")

    def run(self, sha256: str | None, check: Callable[[Path], object]) -> None:
        """Receives the file (resuming once if the connection breaks), verifies it and moves it into place."""
        try:
            try:
                self._receive()
            except _BrokenOffError:
                self._receive()
        except _BrokenOffError as error:
            raise DownloadError(f"{self.url}: the transfer broke off twice ({error}); try again to resume") from error
        try:
            if sha256 and not (digest := _digest(self.part)).startswith(sha256.lower()):
                raise XCiTError(f"{self.part}: wrong file, expected SHA-256 {sha256.lower()}, got {digest}")
            check(self.part)
        except XCiTError as error:
            self._discard()
            raise DownloadError(str(error).replace(str(self.part), self.url), status=200) from None
        self.part.replace(self.destination)
        self.note.unlink(missing_ok=True)

    def write_error(self, error: OSError, num_bytes: int | None) -> DownloadError:
        """Says in one line why the disk did not take the file; a full disk gets its space back."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return DownloadError(f"cannot write {self.destination}: {error.strerror or error}")
        self._discard()
        needed = "more bytes than are free" if num_bytes is None else f"{num_bytes:,} bytes"
        return DownloadError(f"the disk is full: {self.url} needs {needed} in {self.destination.parent}")

    def _receive(self) -> None:
        answer = self._open(*self._resume_point())
        if answer is None:
            return
        response, offset = answer
        with closing(response):
            total = _total_bytes(response.headers, offset)
            try:
                self._write(response, offset, total)
            except OSError as error:
                raise self.write_error(error, total) from error
        num_bytes = self.part.stat().st_size
        if total is not None and num_bytes != total:
            raise _BrokenOffError(f"{num_bytes:,} of {total:,} bytes came")

    def _open(self, offset: int, version: str | None) -> tuple[Any, int] | None:
        """Asks for the bytes from `offset` on.

        Returns:
            The answer and the offset where it starts, 0 where the server cannot resume; None when there is nothing
            more to come: the part is the whole file.
        """
        request = Request(self.url, headers={"User-Agent": "xcit", "Accept-Encoding": "identity"})
        for key, value in self.headers.items():
            request.add_unredirected_header(key, value)
        if offset and version:
            request.add_header("Range", f"bytes={offset}-")
            request.add_header("If-Range", version)
        try:
            # Not `urlopen`, which keeps the proxies that the environment named at its first call.
            opener = build_opener(_Connecting(self.patience), _SafeRedirects)
            response: Any = opener.open(request, timeout=self.timeout)
        except HTTPError as error:
            if error.code != 416 or not offset:
                error.close()
                raise DownloadError(f"{self.url}: HTTP {error.code} {error.reason}", status=error.code) from error
            response = error
        except (ValueError, InvalidURL) as error:
            raise DownloadError(f"{self.url}: not a URL that can be asked ({error})") from error
        except (OSError, HTTPException, OverflowError) as error:  # the last of a length that no memory has
            raise DownloadError(f"{self.url}: {_reason(error)}") from error
        if response.status not in (206, 416):
            return response, 0
        found = version_of(response.headers)
        # A server that resumes without comparing versions would splice two files.
        if response.status == 206 and offset and first_byte(response.headers) == offset and found == version:
            return response, offset
        response.close()
        if response.status == 206 and not offset:
            raise DownloadError(f"{self.url}: HTTP 206, a part of the file though all of it was asked for", status=206)
        if response.headers.get("Content-Range") == f"bytes */{offset}" and found in (None, version):
            return None
        self._discard()
        return self._open(0, None)

    def _write(self, response: Any, offset: int, total: int | None) -> None:
        if offset == 0:
            self.note.unlink(missing_ok=True)
        with self.part.open("ab" if offset else "wb") as file:
            version = version_of(response.headers)
            if offset == 0 and version is not None:
                # Only now that the old bytes are gone may a note vouch for the new ones.
                self.note.write_text(json.dumps({"url": self.url, "version": version}))
            self.report(offset, total)
            done = offset
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                self.report(done, total)
            file.flush()
            os.fsync(file.fileno())

    def _resume_point(self) -> tuple[int, str | None]:
        """How many bytes of which version are here already: (0, None) to start anew."""
        try:
            note = json.loads(self.note.read_text())
            if note["url"] == self.url:
                return self.part.stat().st_size, str(note["version"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing here, or a note cut short
        return 0, None

    def _discard(self) -> None:
        self.note.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


def _read(response: Any) -> bytes:
    try:
        # `read1` hands over what has come, so that a broken connection costs no bytes already here.
        chunk: bytes = response.read1(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(_reason(error)) from error
    return chunk


def version_of(headers: Message) -> str | None:
    """The header that names the file's version in `If-Range`, which takes no weak ETag."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def first_byte(headers: Message) -> int | None:
    """Where a partial answer begins in the file; none if the answer is not partial."""
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total_bytes(headers: Message, offset: int) -> int | None:
    """Size of the whole file in bytes: from a partial answer's range, else from the length of the answer."""
    if found := re.search(r"/(\d+)$", headers.get("Content-Range", "")):
        return int(found[1])
    length = headers.get("Content-Length", "")
    return int(length) + offset if length.isdigit() else None


# ---- connections


class _SafeRedirects(HTTPRedirectHandler):
    """Follows no redirect that leaves encryption: what came over it would be anybody's."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != "https" and req.type != "http":
            fp.close()
            raise URLError(f"refused, it redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Patient(HTTPConnection):
    """A connection that is there within `patience` seconds; once it is, the server has `timeout` for each answer."""

    patience, label = 10.0, ""

    def connect(self) -> None:
        timeout, self.timeout = self.timeout, self.patience
        try:
            _in_time(super().connect, self.patience)
        except OSError as error:
            raise URLError(_unreached(self.label, error)) from error
        self.timeout = timeout
        self.sock.settimeout(timeout)


class _PatientHTTPS(HTTPSConnection, _Patient):
    """The same, with encryption."""


class _Connecting(HTTPHandler, HTTPSHandler):
    """Opens connections with the given patience."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connecting(_Patient, req), req)

    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(self._connecting(_PatientHTTPS, req), req)

    def _connecting(self, kind: type[_Patient], request: Request) -> Any:
        host = urlsplit(f"//{request.host}").hostname
        is_proxy = request.host != urlsplit(request.full_url).netloc

        def connection(address: str, *, timeout: float) -> _Patient:
            made = kind(address, timeout=timeout)
            made.patience, made.label = self._patience, f"proxy {host}" if is_proxy else f"{host}"
            return made

        return connection


def _in_time(action: Callable[[], Result], seconds: float) -> Result:
    """The result of an action; a `TimeoutError` if it takes longer.

    A name look-up without a network can last half a minute and cannot be stopped: its thread is left behind.
    """
    future: Future[Result] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    return future.result(timeout=seconds)


def _unreached(host: str | None, error: BaseException) -> str:
    reason = _reason(error)
    return f"no answer from {host}" if reason == _LATE else f"cannot reach {host}: {reason}"


def _reason(error: BaseException) -> str:
    """Why, in one line; libraries wrap the system's own words in their errors."""
    link: object = error
    while isinstance(link, BaseException):
        if isinstance(link, TimeoutError):
            return _LATE
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        if isinstance(link, URLError) and isinstance(link.reason, str):
            return link.reason
        link = link.reason if isinstance(link, URLError) else link.__cause__ or link.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
