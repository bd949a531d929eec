"""Files at http(s) URLs, read as they arrive: a connection that breaks off is taken up again where it broke."""

import io
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError
from urllib.request import Request, build_opener

from xcit.errors import XCiTError
from xcit.weights.fetch import DownloadError, first_byte, version_of

_TIMEOUT_SECONDS = 15.0
_WAITS = (0, 1, 2, 4, 8, 16)
"""Seconds before each new try in the middle of a run; they are counted anew with every byte that comes."""

_BUFFER_BYTES = 1 << 20


def is_url(place: str) -> bool:
    """Tells http(s) URLs from paths."""
    return place.startswith(("http://", "https://"))


def open_url(url: str, *, waits: Sequence[int] = _WAITS) -> BinaryIO:
    """Opens a file for reading once from its start to its end.

    Args:
        url: an http or https URL. Proxies are taken from the environment, as `urllib` does.
        waits: seconds before each new try after the connection failed.

    Raises:
        DownloadError: here or while it is read, if the server says no, or can't be reached after the last try.
        XCiTError: while it is read, if the server has another file than at the start.
    """
    return cast(BinaryIO, io.BufferedReader(_Body(url, waits), _BUFFER_BYTES))


def read_url(url: str) -> bytes | None:
    """The whole of a small file, None if the server has none.

    Raises:
        DownloadError: as `open_url`, at the first try.
    """
    try:
        with open_url(url, waits=()) as file:
            return file.read()
    except DownloadError as error:
        if error.status in (403, 404, 410):  # object stores say 403 for a file that is not there
            return None
        raise


class _Body(io.RawIOBase):
    """The bytes of one URL."""

    def __init__(self, url: str, waits: Sequence[int]) -> None:
        self._url, self._waits, self._position = url, waits, 0
        self._response: Any = None
        self._length: int | None = None
        self._version: str | None = None
        self._try(lambda: b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        chunk = self._try(lambda: self._receive(len(buffer)))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _try(self, action: Callable[[], bytes]) -> bytes:
        """Does something on an open connection, and once more on a new one if that one fails."""
        waits = list(self._waits)
        while True:
            try:
                if self._response is None:
                    self._connect()
                return action()
            except (OSError, HTTPException) as error:
                self._hang_up()
                status = None
                if isinstance(error, HTTPError):
                    status = error.code
                    error.close()
                # The server's own no stands, unless it says that it is overloaded or out of order.
                if not waits or (status is not None and status < 500 and status not in (408, 429)):
                    reason = f"HTTP {status}" if status else getattr(error, "reason", "") or error
                    raise DownloadError(f"{self._url}: cannot be read ({reason})", status=status) from error
            time.sleep(waits.pop(0))

    def _connect(self) -> None:
        request = Request(self._url, headers={"User-Agent": "xcit", "Accept-Encoding": "identity"})
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
            if self._version:
                request.add_header("If-Range", self._version)
        # Not `urlopen`, which keeps the proxies that the environment named at its first call.
        response = build_opener().open(request, timeout=_TIMEOUT_SECONDS)
        version = version_of(response.headers)
        if not self._position:
            length = response.headers.get("Content-Length")
            self._length, self._version = int(length) if length else None, version
        elif version != self._version:
            response.close()
            raise XCiTError(f"{self._url}: the file has changed while it was read")
        elif first_byte(response.headers) != self._position:
            _skip(response, self._position)
        self._response = response

    def _receive(self, num_bytes: int) -> bytes:
        chunk: bytes = self._response.read1(num_bytes)
        if not chunk and self._length is not None and self._position < self._length:
            raise OSError(f"the connection closed after {self._position:,} of {self._length:,} bytes")
        return chunk

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def _skip(response: Any, num_bytes: int) -> None:
    """Reads past what is known already, for a server that can't give a part of a file."""
    while num_bytes:
        chunk = response.read(min(num_bytes, _BUFFER_BYTES))
        if not chunk:
            raise OSError("the connection closed early")
        num_bytes -= len(chunk)
