"""Reads files at URLs of any protocol that fsspec supports.

If a connection is lost, it is opened again, and reading resumes where it stopped.
"""

import io
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, cast

from xcit.errors import XCiTError
from xcit.extras import install_hint
from xcit.images.sources import file_system

_TIMEOUT_SECONDS = 15.0
_WAITS = (0, 1, 2, 4, 8, 16)
"""Seconds to wait before each new attempt to connect. As soon as data arrive, attempts are counted from 0 again."""

_BUFFER_BYTES = 1 << 20

MOST_BYTES = 1 << 30
"""The largest accepted size of a file that is read as a whole, in bytes."""

_MISUSE = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, ImportError)
"""Errors that a protocol's library raises for an invalid URL; another attempt would fail too."""

_OF_HTTP = {"client_kwargs": {"trust_env": True}}  # use the proxies in the environment variables


def is_url(place: str) -> bool:
    """Returns whether `place` is a URL (if not, it is a path)."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


def open_url(url: str, *, waits: Sequence[int] = _WAITS) -> BinaryIO:
    """Opens the file at a URL for reading once, from start to end.

    Args:
        url: a URL that begins with `https://`, `s3://`, `gs://`, `hf://` or another protocol. The library that fsspec
            uses for the protocol finds credentials in its usual locations. HTTP uses the proxies in the environment
            variables.
        waits: seconds to wait before each new attempt after a failure. After the last value, no new attempt is made.

    Raises:
        XCiTError: if the library for the protocol is missing, the server refuses the request, or all attempts fail.
            Reading from the file raises the same errors, and also an error if the file on the server has changed.
    """
    return cast(BinaryIO, io.BufferedReader(_Body(url, waits), _BUFFER_BYTES))


def read_url(url: str) -> bytes | None:
    """Returns the contents of a small file at a URL; None if the file does not exist.

    Raises:
        XCiTError: as in `open_url`; there is only one attempt.
    """
    try:
        with open_url(url, waits=()) as file:
            return read_whole(file, url)
    except XCiTError as error:
        if _status(error.__cause__) in (403, 404, 410):  # object stores may answer 403 for a missing file
            return None
        raise


def read_whole(file: BinaryIO, url: str) -> bytes:
    """Returns all bytes of a file that `open_url` has opened.

    Raises:
        XCiTError: if the file has more than `MOST_BYTES` bytes, or can't be read to its end.
    """
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise XCiTError(f"{url}: more than {MOST_BYTES:,} bytes")
    return data


def open_seekable(url: str) -> BinaryIO:
    """Opens the file at a URL for reading at any position, which is necessary for Parquet files.

    Raises:
        XCiTError: if the library for the protocol is missing, or the file can't be opened.
    """
    files, path = _file_system(url, **_OF_HTTP if url.startswith("http") else {})
    try:
        return cast(BinaryIO, files.open(path, "rb"))
    except Exception as error:  # an error of the operating system or of the protocol's library
        raise XCiTError(f"{url}: cannot be read ({_reason(error)})") from error


def list_urls(url: str) -> list[str]:
    """Returns a sorted list of the URLs of files.

    If `url` ends in a slash, it is a folder, and all files below this folder are listed. Otherwise it is a pattern, and
    all files that match the pattern are listed.

    Raises:
        XCiTError: if the protocol can't list files, or the server refuses the request.
    """
    files, path = _file_system(url, **_OF_HTTP if url.startswith("http") else {})
    try:
        found = files.find(path) if url.endswith("/") else files.glob(path)
        return [str(files.unstrip_protocol(one)) for one in sorted(found)]
    except Exception as error:  # an error of the operating system or of the protocol's library
        raise XCiTError(f"{url}: its files cannot be listed ({_reason(error)})") from error


class _Body(io.RawIOBase):
    """The bytes of the file at a URL, as a stream that connects again after an error."""

    def __init__(self, url: str, waits: Sequence[int]) -> None:
        self._url, self._waits, self._position = url, waits, 0
        self._is_http = url.startswith(("http://", "https://"))
        self._file: Any = None
        self._version: str | None = None
        self._try(lambda: b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        chunk = self._try(lambda: self._file.read(len(buffer)))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _try(self, action: Callable[[], bytes]) -> bytes:
        """Calls `action`, which reads from the open file; after an error, opens the file again and repeats the call."""
        waits = list(self._waits)
        while True:
            try:
                if self._file is None:
                    self._open()
                return action()
            except XCiTError:
                raise
            except Exception as error:  # an error of the operating system or of the protocol's library
                self._hang_up()
                status = _status(error)
                # If the server refuses the request, another attempt is useless. Statuses that may be temporary are not
                # refusals: 408 (timeout), 429 (too many requests), and from 500 on (errors of the server).
                is_refusal = status is not None and status < 500 and status not in (408, 429)
                if not waits or is_refusal or isinstance(error, _MISUSE):
                    reason = f"HTTP {status}" if status and self._is_http else _reason(error)
                    raise XCiTError(f"{self._url}: cannot be read ({reason})") from error
            time.sleep(waits.pop(0))

    def _open(self) -> None:
        """Opens the file at the current position."""
        if self._is_http:
            version, start = self._open_answer()
        else:
            files, path = _file_system(self._url)
            files.invalidate_cache()
            self._file, version, start = files.open(path), files.ukey(path), self._position
            self._file.seek(start)
        if self._position and version != self._version:
            raise XCiTError(f"{self._url}: the file has changed while it was read")
        self._version = version
        while start < self._position:
            skipped = len(self._file.read(min(self._position - start, _BUFFER_BYTES)))
            if not skipped:
                raise OSError("the connection closed early")
            start += skipped

    def _open_answer(self) -> tuple[str | None, int]:
        """Opens the file as one streamed HTTP response.

        The response begins at the current position if the server supports this, otherwise at the start of the file.
        Requests of single blocks would be slower, and not every server supports them.

        Returns:
            The file's version (its ETag or date; None if the server gives neither), and the position in the file at
            which the response begins.
        """
        files, path = _file_system(self._url, **_OF_HTTP)
        from aiohttp import ClientTimeout

        headers = {"Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        timeout = ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS)
        # `size=1` is not the real size. Without this argument, fsspec would first request the real size.
        self._file = files.open(path, block_size=0, size=1, headers=headers, timeout=timeout)
        answer = self._file.r.headers
        is_rest = answer.get("Content-Range", "").startswith(f"bytes {self._position}-")
        return answer.get("ETag") or answer.get("Last-Modified"), self._position if is_rest else 0

    def _hang_up(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path of the file in this file system."""
    try:
        return file_system(url, **options)
    except XCiTError as error:
        is_missing = isinstance(error.__cause__, ImportError) and url.startswith("http")
        extra = f" ({install_hint('aiohttp')})" if is_missing else ""
        raise XCiTError(f"{url}: cannot be read: {error}{extra}") from error


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status that corresponds to an error; None if there is no such status."""
    if isinstance(error, FileNotFoundError):
        return 404
    return 403 if isinstance(error, PermissionError) else getattr(error, "status", None)


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    if isinstance(error, FileNotFoundError) and not number:  # raised by a protocol's library
        return "no such file"
    return os.strerror(number) if number > 0 else " ".join(str(error).split()) or type(error).__name__
