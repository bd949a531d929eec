"""Reads the bytes of images from URLs, standard input and open files."""

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
from xcit.regular import regular

STANDARD_INPUT = "-"

_LOCAL = ("file", "local")
"""Protocols of local files. Their URLs contain an absolute path and no host."""

_TIMEOUT_SECONDS = 20.0

_MOST_BYTES = 1 << 30
"""Largest number of bytes that are read from one source (1 GiB). No photograph is larger."""

# In a URL that was converted to a `Path`, only one slash follows the scheme. A single letter is a Windows drive and not
# a scheme.
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}(?=[^/])")


def as_url(source: str | os.PathLike[str]) -> str | None:
    """Returns the URL in `source`, or None if `source` is a path.

    If a URL was converted to a `Path`, its slashes are restored.
    """
    text = os.fspath(source)
    found = _URL.match(text)
    if found is None:
        return None
    scheme = found[1].lower()
    return f"{scheme}://{'/' * (scheme in _LOCAL)}{text[found.end() :]}"


def source_name(source: str | os.PathLike[str]) -> str:
    """Returns the name of a path, a URL or standard input for messages, as one line of text."""
    if os.fspath(source) == STANDARD_INPUT:
        return "standard input"
    url = as_url(source)
    if url is None:
        return printable(Path(source))
    return url if url.isprintable() else ascii(url)


def printable(path: Path) -> str:
    """Returns a path as one line of text; characters that can't be printed are escaped."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def bytes_elsewhere(source: str | os.PathLike[str]) -> bytes | None:
    """Reads all bytes from a URL or from standard input; returns None if `source` is a path.

    Raises:
        XCiTError: if the bytes can't be read. The message is the reason, without the name of the source.
    """
    if os.fspath(source) == STANDARD_INPUT:
        return bytes_of(sys.stdin.buffer)
    url = as_url(source)
    if url is None:
        return None
    if url.startswith("file:"):
        try:
            with regular(url2pathname(urlsplit(url).path)).open("rb") as file:
                return bytes_of(file)
        except OSError as error:
            raise XCiTError(error.strerror or str(error)) from None
    return _fetched(url)


def bytes_of(file: IO[Any]) -> bytes:
    """Reads the rest of an open file.

    Raises:
        XCiTError: if the file can't be read, is open in text mode, has more than `_MOST_BYTES` bytes left, or has no
            bytes left. The message is the reason, without the name of the file.
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
        return _by_fsspec(url)
    except XCiTError:
        raise
    except HTTPError as error:
        with error:
            raise XCiTError(f"the server answered {error.code} {error.reason}") from None
    except Exception as error:  # protocols and their libraries raise errors of any type
        raise XCiTError(f"cannot be fetched ({reason_of(error)})") from None


def _by_fsspec(url: str) -> bytes:
    try:
        files, path = file_system(url)
    except XCiTError as error:
        raise XCiTError(f"cannot be fetched ({error})") from None
    with files.open(path, "rb") as file:
        return bytes_of(file)


def file_system(url: str, **options: Any) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL, and the path of the file in this file system.

    Args:
        url: a URL with a single protocol. A chain of protocols (`zip://a.png::https://...`) is refused, because it may
            read from any other source and may write copies to the disk.
        options: options of the protocol, passed to fsspec.

    Raises:
        XCiTError: if the protocol is unknown, a package for the protocol is missing, the URL contains a chain of
            protocols, or the URL refers to a device or a pipe of this machine.
    """
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if "::" in url:
        raise XCiTError(
            "a chain of protocols (::) is not supported: unpack the archive, or give a URL with one protocol"
        )
    try:
        files, path = url_to_fs(url, **options)
        if isinstance(files, LocalFileSystem):
            regular(path)
    except Exception as error:  # fsspec and the libraries of protocols raise errors of any type
        raise XCiTError(" ".join(str(error).split()) or type(error).__name__) from error
    return files, path
