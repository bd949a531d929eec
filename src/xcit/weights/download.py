"""Downloads one file: resumes what broke off, verifies what arrived, and never leaves half a file in place."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, build_opener

from xcit.errors import XCiTError

DownloadProgress = Callable[[str, int, int | None], None]
"""Called as `progress(what, bytes_done, bytes_in_all or None)` while a file arrives."""

_CHUNK_BYTES = 1 << 20


class DownloadError(XCiTError):
    """A download that failed. `status` is that of the server's answer, None when no usable answer came."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None = None,
    progress: DownloadProgress | None = None,
    timeout: float = 20.0,
    what: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Brings the file at `url` to `destination`, unless it is there already.

    The bytes go to `<destination>.part` first. When that file is left from an earlier call, and the server still has
    the same file and can serve a part of it, only the rest is asked for. A second process that wants the same
    destination waits for the first, then finds the finished file.

    Args:
        url: An http, https or file URL. Proxies are taken from the environment, as `urllib` does.
        destination: Path of the finished file; missing folders are made.
        sha256: The file's hex digest or its first digits; a file with another digest is deleted.
        progress: Called while the file arrives.
        timeout: Seconds without a byte from the server that count as a broken connection.
        what: Name of the file for `progress`; by default the last part of the URL.
        headers: Further request headers, sent to the URL's own host only, never to where it redirects (a token).

    Returns:
        `destination`.

    Raises:
        DownloadError: The server cannot be reached or says no, the connection broke twice, the digest is wrong, or
            the file cannot be written.
    """
    from filelock import FileLock  # a tenth of a second that only a download should cost

    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise DownloadError(f"{url}: only http, https and file URLs can be downloaded")
    name = what or unquote(urlsplit(url).path.rpartition("/")[2]) or url

    def report(done: int, total: int | None) -> None:
        if progress is not None:
            progress(name, done, total)

    transfer = _Transfer(url, destination, sha256, timeout, dict(headers or {}), report)
    try:
        if is_intact(destination, sha256):
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{destination}.lock"):
            if not is_intact(destination, sha256):  # else another process finished it while we waited
                destination.unlink(missing_ok=True)
                transfer.run()
    except OSError as error:
        raise transfer.write_error(error, None) from error
    return destination


def is_intact(path: Path, sha256: str | None) -> bool:
    """Tells whether `path` is a file whose SHA-256 starts with the given hex digits (any file when none are given)."""
    return path.is_file() and (sha256 is None or _digest(path).startswith(sha256.lower()))


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


@dataclass(frozen=True)
class _Transfer:
    """The way of one URL into one file; the caller holds the destination's lock."""

    url: str
    destination: Path
    sha256: str | None
    timeout: float
    headers: dict[str, str]
    report: Callable[[int, int | None], None]

    @property
    def part(self) -> Path:
        """The bytes so far."""
        return self.destination.with_name(f"{self.destination.name}.part")

    @property
    def note(self) -> Path:
        """Which version of which URL the part belongs to."""
        return self.destination.with_name(f"{self.destination.name}.part.json")

    def run(self) -> None:
        """Receives the file (resuming once if the connection breaks), verifies it and moves it into place."""
        try:
            self._receive()
        except _BrokenOffError:
            try:
                self._receive()
            except _BrokenOffError as error:
                raise DownloadError(
                    f"{self.url}: the transfer broke off twice ({error}); try again to resume"
                ) from error
        if self.sha256 is not None:
            digest = _digest(self.part)
            if not digest.startswith(self.sha256.lower()):
                self._discard()
                expected = self.sha256.lower()
                raise DownloadError(f"{self.url}: wrong file, expected SHA-256 {expected}, got {digest}", status=200)
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
        offset, version = self._resume_point()
        answer = self._open(offset, version)
        if answer is None:
            return
        response, offset = answer
        with response:
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
            response = build_opener().open(request, timeout=self.timeout)
        except HTTPError as error:
            with error:
                if error.code != 416 or not offset:
                    raise DownloadError(f"{self.url}: HTTP {error.code} {error.reason}", status=error.code) from error
                found = error.headers.get("Content-Range")
                if found == f"bytes */{offset}" and version_of(error.headers) in (None, version):
                    return None
        except (OSError, HTTPException, ValueError) as error:
            raise DownloadError(f"{self.url}: {_reason(error)}") from error
        else:
            if response.status != 206:
                return response, 0
            # A server that resumes without comparing versions would splice two files.
            if offset and first_byte(response.headers) == offset and version_of(response.headers) == version:
                return response, offset
            response.close()
            if not offset:
                raise DownloadError(
                    f"{self.url}: HTTP 206, a part of the file though all of it was asked for", status=206
                )
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
    found = re.match(r"bytes \d+-\d+/(\d+|\*)$", headers.get("Content-Range", ""))
    if found and found[1] != "*":
        return int(found[1])
    length = headers.get("Content-Length")
    if length is None or not length.isdigit():
        return None
    return int(length) + (offset if found else 0)


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "the server did not answer in time"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
