"""Reads files at URLs of any protocol that fsspec knows; after a broken connection, reading resumes where it broke."""

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
"""Seconds to wait before each new attempt to connect; once data arrive, the attempts are counted from 0 again."""

_BUFFER_BYTES = 1 << 20

MOST_BYTES = 1 << 30
"""The largest size of a file that is read whole."""

_MISUSE = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, ImportError)
"""Errors that a protocol's library raises for a URL that is not valid; another attempt would fail too."""

_OF_HTTP = {"client_kwargs": {"trust_env": True}}  # use the proxies of the environment


def is_url(place: str) -> bool:
    """Returns whether a place is a URL and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


def open_url(url: str, *, waits: Sequence[int] = _WAITS) -> BinaryIO:
    """Opens a file for reading once from start to end.

    Args:
        url: `https://`, `s3://`, `gs://`, `hf://` and so on. Credentials are found where fsspec's library for the
            protocol looks for them. HTTP uses the proxies of the environment.
        waits: seconds before each new attempt after the connection failed.

    Raises:
        XCiTError: if the library for the protocol is missing; also, here or while reading, if the server refuses, can't
            be reached after the last attempt, or has another file than at the start.
    """
    return cast(BinaryIO, io.BufferedReader(_Body(url, waits), _BUFFER_BYTES))


def read_url(url: str) -> bytes | None:
    """Returns the contents of a small file, or None if it does not exist.

    Raises:
        XCiTError: as in `open_url`; there is only one attempt.
    """
    try:
        with open_url(url, waits=()) as file:
            return read_whole(file, url)
    except XCiTError as error:
        if _status(error.__cause__) in (403, 404, 410):  # object stores answer 403 for missing files
            return None
        raise


def read_whole(file: BinaryIO, url: str) -> bytes:
    """Reads an open URL to its end.

    Raises:
        XCiTError: if there are more than `MOST_BYTES`, which no image or list has.
    """
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise XCiTError(f"{url}: more than {MOST_BYTES:,} bytes")
    return data


def open_seekable(url: str) -> BinaryIO:
    """Opens a file for reads at any position, as a Parquet file needs them.

    Raises:
        XCiTError: if the library for the protocol is missing, or there is no such file.
    """
    files, path = _file_system(url, **_OF_HTTP if url.startswith("http") else {})
    try:
        return cast(BinaryIO, files.open(path, "rb"))
    except Exception as error:  # from the operating system or the protocol's library
        raise XCiTError(f"{url}: cannot be read ({_reason(error)})") from error


def list_urls(url: str) -> list[str]:
    """Returns the sorted URLs of the files below a folder, which ends in a slash, or of those that match a pattern.

    Raises:
        XCiTError: if the protocol can't list files, or the server refuses.
    """
    files, path = _file_system(url, **_OF_HTTP if url.startswith("http") else {})
    try:
        found = files.find(path) if url.endswith("/") else files.glob(path)
        return [str(files.unstrip_protocol(one)) for one in sorted(found)]
    except Exception as error:  # from the operating system or the protocol's library
        raise XCiTError(f"{url}: its files cannot be listed ({_reason(error)})") from error


class _Body(io.RawIOBase):
    """The bytes at one URL."""

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
        """Calls a function of the open file; if it fails, opens the file again and repeats the call."""
        waits = list(self._waits)
        while True:
            try:
                if self._file is None:
                    self._open()
                return action()
            except XCiTError:
                raise
            except Exception as error:  # from the operating system or the protocol's library
                self._hang_up()
                status = _status(error)
                # If the server refuses, another attempt is useless, unless it reports that it is overloaded or out of
                # order.
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
        """Opens one streamed response: requests of single blocks are slower, and not every server supports them.

        Returns:
            The file's version, and the byte at which the response begins.
        """
        files, path = _file_system(self._url, **_OF_HTTP)
        from aiohttp import ClientTimeout

        headers = {"Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        timeout = ClientTimeout(total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS)
        # Without this size, fsspec would first request the size of the file.
        self._file = files.open(path, block_size=0, size=1, headers=headers, timeout=timeout)
        answer = self._file.r.headers
        is_rest = answer.get("Content-Range", "").startswith(f"bytes {self._position}-")
        return answer.get("ETag") or answer.get("Last-Modified"), self._position if is_rest else 0

    def _hang_up(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the name of the file in it."""
    try:
        return file_system(url, **options)
    except XCiTError as error:
        is_missing = isinstance(error.__cause__, ImportError) and url.startswith("http")
        extra = f" ({install_hint('aiohttp')})" if is_missing else ""
        raise XCiTError(f"{url}: cannot be read: {error}{extra}") from error


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status of an error, or None for other errors."""
    if isinstance(error, FileNotFoundError):
        return 404
    return 403 if isinstance(error, PermissionError) else getattr(error, "status", None)


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    if isinstance(error, FileNotFoundError) and not number:  # raised by a protocol's library, with only the file's name
        return "no such file"
    return os.strerror(number) if number > 0 else " ".join(str(error).split()) or type(error).__name__
