"""Image files that are no paths: URLs, standard input, bytes and open files."""

import os
import re
import sys
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, url2pathname

from xcit.connections import open_answer, reason_of
from xcit.errors import XCiTError

STANDARD_INPUT = "-"

_TIMEOUT_SECONDS = 20.0

_MOST_BYTES = 1 << 30
"""What is longer is no picture that is meant."""

# A path that was made of a URL has one slash after the scheme. Two letters at least: one is a drive of Windows.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?=[^/])")


def as_url(source: str | os.PathLike[str]) -> str | None:
    """The URL that is meant, also where it went through a `Path`; none where it is a path."""
    text = os.fspath(source)
    found = _URL.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    return f"{scheme}://{'/' * (scheme == 'file')}{text[found.end() :]}"


def source_name(source: str | os.PathLike[str]) -> str:
    """What to call a path, a URL or standard input, on one line."""
    if os.fspath(source) == STANDARD_INPUT:
        return "standard input"
    url = as_url(source)
    if url is None:
        return printable(Path(source))
    return url if url.isprintable() else ascii(url)


def printable(path: Path) -> str:
    """Shows a path on one line, whatever its bytes."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def bytes_elsewhere(source: str | os.PathLike[str]) -> bytes | None:
    """The bytes of an image at a URL or from standard input, and none of a path, which is for others to open.

    Raises:
        XCiTError: with the reason if they can't be had.
    """
    if os.fspath(source) == STANDARD_INPUT:
        return bytes_of(sys.stdin.buffer)
    url = as_url(source)
    if url is None:
        return None
    if url.startswith("file:"):
        try:
            with Path(url2pathname(urlsplit(url).path)).open("rb") as file:
                return bytes_of(file)
        except OSError as error:
            raise XCiTError(error.strerror or str(error)) from None
    return _fetched(url)


def bytes_of(file: IO[Any]) -> bytes:
    """All that is left in an open file.

    Raises:
        XCiTError: with the reason if that is no bytes, too many of them, or none.
    """
    try:
        data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise XCiTError(f"cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(data, bytes):
        raise XCiTError("the file is open for text; open it for bytes, with mode 'rb'")
    if len(data) > _MOST_BYTES:
        raise XCiTError(f"more than {_MOST_BYTES:,} bytes")
    if not data:
        raise XCiTError("the file is empty (0 bytes)")
    return data


def _fetched(url: str) -> bytes:
    try:
        if url.startswith(("http://", "https://")):
            request = Request(url, headers={"User-Agent": "xcit"})
            with open_answer(request, timeout=_TIMEOUT_SECONDS, patience=_TIMEOUT_SECONDS) as answer:
                return bytes_of(answer)
        import fsspec

        with fsspec.open(url, "rb") as file:
            return bytes_of(file)
    except XCiTError:
        raise
    except HTTPError as error:
        with error:
            raise XCiTError(f"the server answered {error.code} {error.reason}") from None
    except Exception as error:  # what protocols and their libraries raise is of any type
        raise XCiTError(f"cannot be had ({reason_of(error)})") from None
