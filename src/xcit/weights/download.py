"""Downloads a file from a URL: resumes a broken download, verifies the file, and then moves it to its destination."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, InvalidURL
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request

from xcit.connections import open_answer, reason_of
from xcit.errors import XCiTError

DownloadProgress = Callable[[str, int, int | None], None]
"""A callback during a download: `progress(name, bytes_received, total_bytes)`; the total is None if it is unknown."""

_CHUNK_BYTES = 1 << 20


class DownloadError(XCiTError):
    """Raised if a download fails.

    Attributes:
        status: HTTP status of the server's answer; None if there was no usable answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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
    """Downloads the file at `url` to `destination`, unless `destination` already exists with the right digest.

    The bytes are written to a part file first, `<destination>.part`. A download is resumed if an earlier call left a
    part file, the server still has the same version of the file, and the server can send a range of bytes. If two
    processes download to the same destination, the second process waits for the first process and uses its file.

    Args:
        url: An http, https or file URL. Proxies are read from the environment, as in `urllib`.
        destination: Path of the finished file; missing folders are created.
        sha256: The file's SHA-256 in hex, or its first digits; a file with another digest is deleted.
        check: Called with the path of the downloaded file before it is moved to `destination`; if `check` raises an
            `XCiTError`, the file is deleted.
        progress: Called repeatedly during the download.
        timeout: The connection counts as broken after this number of seconds without data.
        patience: Time limit in seconds for establishing a connection, including the look-up of the host's name.
        headers: Additional request headers, such as a token. They are not sent to the targets of redirects.

    Returns:
        `destination`.

    Raises:
        DownloadError: The server can't be reached, returns an error, or redirects from https to an address without
            encryption. The error is also raised if the connection broke twice, the file is wrong, or the file can't
            be written.
    """
    from filelock import FileLock  # imported here, because the import takes 0.1 s

    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise DownloadError(f"{url}: can't be downloaded: only http, https and file URLs are supported")
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
            if not is_intact(
                destination, sha256
            ):  # another process may have finished the download while this process waited
                destination.unlink(missing_ok=True)
                transfer.run(sha256, check)
    except OSError as error:
        raise transfer.write_error(error, None) from error
    return destination


def is_intact(path: Path, sha256: str | None) -> bool:
    """Returns whether `path` is a file, and its SHA-256 starts with these hex digits (None means any digest)."""
    return path.is_file() and (sha256 is None or _digest(path).startswith(sha256.lower()))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _BrokenOffError(Exception):
    """Raised if the connection ends before the whole file has been received."""


@dataclass(frozen=True, kw_only=True)
class _Transfer:
    """Downloads one file, while the caller holds the lock of the destination.

    The fields are arguments of `download`; `report` is `progress` without the argument for the name.
    """

    url: str
    destination: Path
    timeout: float
    patience: float
    headers: Mapping[str, str]
    report: Callable[[int, int | None], None]

    @property
    def part(self) -> Path:
        """Path of the part file, which contains the bytes received so far."""
        return self.destination.with_name(f"{self.destination.name}.part")

    @property
    def note(self) -> Path:
        """Path of a JSON file that contains the URL of the download and the version of the file on the server."""
        return self.destination.with_name(f"{self.destination.name}.part.json")

    def run(self, sha256: str | None, check: Callable[[Path], object]) -> None:
        """Receives the file, verifies it and moves it to `destination`.

        If the connection breaks, one more attempt resumes the download.
        """
        try:
            try:
                self._receive()
            except _BrokenOffError:
                self._receive()
        except _BrokenOffError as error:
            raise DownloadError(f"{self.url}: the connection broke twice ({error}); try again to resume") from error
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
        """Returns the error for a file that can't be written. If the disk is full, the part file is deleted.

        Args:
            error: the error of the operating system.
            num_bytes: size of the whole file; None if it is unknown.
        """
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
            raise _BrokenOffError(f"received {num_bytes:,} of {total:,} bytes")

    def _open(self, offset: int, version: str | None) -> tuple[Any, int] | None:
        """Requests the file's bytes from `offset` to its end.

        Returns:
            The answer and the offset of its first byte; the offset is 0 if the server can't resume. None if the part
            file is already the whole file.
        """
        request = Request(self.url, headers={"User-Agent": "xcit", "Accept-Encoding": "identity"})
        for key, value in self.headers.items():
            request.add_unredirected_header(key, value)
        if offset and version:
            request.add_header("Range", f"bytes={offset}-")
            request.add_header("If-Range", version)
        try:
            response = open_answer(request, timeout=self.timeout, patience=self.patience)
        except HTTPError as error:
            if error.code != 416 or not offset:
                error.close()
                raise DownloadError(f"{self.url}: HTTP {error.code} {error.reason}", status=error.code) from error
            response = error
        except (ValueError, InvalidURL) as error:
            raise DownloadError(f"{self.url}: not a valid URL ({error})") from error
        except (OSError, HTTPException, OverflowError) as error:  # OverflowError: the stated length is too large
            raise DownloadError(f"{self.url}: {reason_of(error)}") from error
        if response.status not in (206, 416):
            return response, 0
        found = version_of(response.headers)
        # Some servers ignore `If-Range`. So the version is compared here too: the bytes of two versions must not be
        # mixed.
        if response.status == 206 and offset and first_byte(response.headers) == offset and found == version:
            return response, offset
        response.close()
        if response.status == 206 and not offset:
            raise DownloadError(
                f"{self.url}: the whole file was requested, but the server sent only a part (HTTP 206)", status=206
            )
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
                # The note is written after the old part file is emptied, because the note describes the new part file.
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
        """Returns the size of the part file and its version; (0, None) means to start from the beginning."""
        try:
            note = json.loads(self.note.read_text())
            if note["url"] == self.url:
                return self.part.stat().st_size, str(note["version"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the note is missing or incomplete
        return 0, None

    def _discard(self) -> None:
        self.note.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)


def _read(response: Any) -> bytes:
    try:
        # `read1` returns the bytes received so far, so that no bytes are lost if the connection breaks.
        chunk: bytes = response.read1(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(reason_of(error)) from error
    return chunk


def version_of(headers: Message) -> str | None:
    """Returns the header value that identifies the file's version: a strong ETag, or else the date of modification."""
    etag = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def first_byte(headers: Message) -> int | None:
    """Returns the offset in the file at which a partial HTTP response begins; None if the response is not partial."""
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _total_bytes(headers: Message, offset: int) -> int | None:
    """Returns the size of the whole file in bytes; None if it is unknown.

    The size is read from `Content-Range`, or else computed from `Content-Length` and the offset of the answer.
    """
    if found := re.search(r"/(\d+)$", headers.get("Content-Range", "")):
        return int(found[1])
    length = headers.get("Content-Length", "")
    return int(length) + offset if length.isdigit() else None
