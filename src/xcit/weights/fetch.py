"""Gets the file of a published checkpoint from the first source that has the file: a mirror, the Hub or a URL.

The package huggingface_hub returns the URL, version and digest of a file on the Hub, and the user's token. Its own
downloads are not used: they check no digest, keep a second copy of each file, and retry for more than a minute if there
is no network. All files are downloaded by `download`.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from xcit.errors import XCiTError
from xcit.regular import expanded
from xcit.weights.download import DownloadError, DownloadProgress, download, is_intact
from xcit.weights.hub import PATIENCE_SECONDS, as_digest, find_on_hub, offline_switch

_ABSENT = (403, 404)
"""The HTTP statuses for a file that does not exist; some object stores answer 403 instead of 404."""


class FetchError(XCiTError):
    """Raised if no source has the file.

    The first line of the message says what failed. The next lines contain the reasons, one per source. The last line
    says what to do.
    """


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source from which the file of a checkpoint can be downloaded.

    Attributes:
        kind: "huggingface" for the Hugging Face Hub, or "url".
        location: a repository of the Hub ("owner/name"), or an http, https or file URL.
        filename: the file's path in the repository, or the last part of the URL.
        sha256: the file's hex digest or at least its first 8 digits; None if it is not known.
    """

    kind: Literal["huggingface", "url"]
    location: str
    filename: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        steps = PurePosixPath(self.filename).parts
        # The name is used as a path in a folder on this machine, so it must not point outside this folder.
        if not steps or ".." in steps or steps[0] == "/" or "\\" in self.filename:
            raise XCiTError(f"{self.filename!r} is not a valid file name (source: {self.location})")
        if self.kind == "url" and len(steps) > 1:
            raise XCiTError(f"{self.filename!r} must be the last part of the URL {self.location}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", self.sha256):
            raise XCiTError(f"{self.sha256!r} is not a SHA-256 in hex with 8 to 64 digits (source: {self.location})")

    @property
    def label(self) -> str:
        """A short readable name for messages."""
        return f"Hugging Face {self.location}" if self.kind == "huggingface" else self.location


def cache_dir() -> Path:
    """Returns the folder for weights: `$XCIT_CACHE`, else `$XDG_CACHE_HOME/xcit`, else `~/.cache/xcit`."""
    if own := os.environ.get("XCIT_CACHE"):
        return expanded(own, "set XCIT_CACHE to an existing folder")
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "set XCIT_CACHE to a folder for weights") / "xcit"


def obtain(
    name: str, sources: Sequence[Source], directory: Path, *, progress: DownloadProgress | None = None
) -> tuple[Path, Source | None]:
    """Returns the published file of a checkpoint, and downloads it if it is not on this machine.

    First, the file is looked for on this machine: in the folder `XCIT_MIRROR`, then, for each source, in `directory`
    and in the Hub's own cache. If the file is not there, it is requested from the URL `XCIT_MIRROR`, and then from each
    source in order. `XCIT_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids these requests. A file with a wrong SHA-256 is never
    returned.

    Args:
        name: The checkpoint's name. A mirror may contain the checkpoint's file as `<name>.safetensors`.
        sources: The sources of the file, the preferred one first. A mirror may contain a source's file under the file
            name of that source.
        directory: The folder for downloads. Files in a mirror folder or in the Hub's cache are not copied.
        progress: Called repeatedly during a download.

    Returns:
        The path of the file, and the source that published the file (None for `<name>.safetensors` of a mirror).

    Raises:
        FetchError: No source has the file. Without a network, the error is raised within five seconds.
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
        reasons.append(
            f"{label}: has none of the files {', '.join(names)}" if folder.is_dir() else f"{label}: no such folder"
        )
    for source in sources:
        if copy := _local_copy(source, directory):
            return copy, source

    switch = offline_switch()
    # The requests, in order. Each entry is a label for messages, and files to try; each file is paired with the source
    # that published it.
    asked = list[tuple[str, list[tuple[Source, Source | None]]]]()
    if mirror and folder is None:
        asked.append((label, [(_on_mirror(mirror, *pair), pair[1]) for pair in names.items()]))
    asked += [(source.label, [(source, source)]) for source in sources]
    patience = PATIENCE_SECONDS
    for label, files in asked:
        missing = []
        for place, published in files:
            try:
                if switch and not place.location.startswith("file:"):
                    raise DownloadError(f"not requested, because {switch} is set")
                return _bring(place, directory, progress, patience), published
            except DownloadError as error:
                if place is not published and error.status in _ABSENT:
                    missing.append(place.location.removeprefix(mirror).strip("/"))
                    continue
                reasons.append(f"{label}: {str(error).removeprefix(f'{place.label}: ')}")
                if error.status is None:  # the server was not reached, so requests for other files would fail too
                    patience /= 2
                    missing = []
                    break
        if missing:
            reasons.append(f"{label}: has none of the files {', '.join(missing)}")
    lines = "".join(f"  {reason}\n" for reason in reasons)
    raise FetchError(
        f"cannot get the weights of {name}:\n{lines}"
        f"Set XCIT_MIRROR to a folder or URL with the files (`xcit fetch {name} --to DIR` creates such a folder on a "
        "machine with a network), or pass pretrained=PATH"
    )


# ---- paths and URLs


def _as_folder(mirror: str) -> Path | None:
    """Returns the path of a mirror on this machine; None if the mirror is remote or not set."""
    if mirror.startswith("file:"):
        return Path(url2pathname(urlsplit(mirror).path))
    return expanded(mirror, "set XCIT_MIRROR to an existing folder") if mirror and "://" not in mirror else None


def _mirror_names(name: str, sources: Sequence[Source]) -> dict[str, Source | None]:
    """Maps the file names that a checkpoint may have on a mirror to their sources, the preferred name first.

    `<name>.safetensors` has no source.
    """
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
    """Returns the path for a download. It depends on the whole URL, because many files are called model.safetensors."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return directory / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"


def _source_path(source: Source, directory: Path) -> Path:
    if source.kind == "url":
        return destination_of(source.location, directory)
    return directory / f"{source.location}/{source.filename}".replace("/", "--")


def _local_copy(source: Source, directory: Path) -> Path | None:
    """Returns the path of an earlier download, in `directory` or in the Hub's own cache; None if no file is there."""
    path = _source_path(source, directory)
    if is_intact(path, source.sha256):
        return path
    if source.kind == "huggingface":
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(source.location, source.filename)
        except ValueError:  # the name of the repository is not valid; the download reports this error later
            return None
        if isinstance(cached, str):
            # In the Hub's cache, a file is a link to a blob. For a large file, the name of the blob is its SHA-256.
            copy = Path(cached)
            blob = copy.readlink().name if copy.is_symlink() else None
            if is_intact(copy, as_digest(blob)) and is_intact(copy, source.sha256):
                return copy
    return None


def _bring(source: Source, directory: Path, progress: DownloadProgress | None, patience: float) -> Path:
    path = _source_path(source, directory)
    if source.kind == "url":
        return download(source.location, path, sha256=source.sha256, progress=progress, patience=patience)

    found = find_on_hub(source.location, source.filename, patience=patience)
    if found.sha256 and source.sha256 and not found.sha256.startswith(source.sha256.lower()):
        raise DownloadError(
            f"{found.url}: wrong file, expected SHA-256 {source.sha256.lower()}, but the Hub has {found.sha256}",
            status=200,
        )
    return download(
        found.url,
        path,
        sha256=found.sha256 or source.sha256,
        progress=progress and (lambda _, done, total: progress(source.label, done, total)),
        patience=patience,
        headers=found.headers,
    )
