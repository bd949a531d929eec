"""Checks paths before use: opening a pipe could wait forever, a device may never end, and some users have no home."""

import errno
import os
import stat
from pathlib import Path

from xcit.errors import XCiTError


def regular(path: str | os.PathLike[str]) -> Path:
    """Returns the path itself, after a check that it can be passed to `open` and the like.

    Raises:
        OSError: if the path is a pipe, a socket or a device. A missing file or a folder raises no error here, because
            opening it fails anyway.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError):  # ValueError: its name contains a zero byte
        return place
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file, but a pipe, a socket or a device", str(place))
    return place


def is_file(path: Path) -> bool:
    """Returns whether a path is a file; for text that can't be a path, for example because it is too long, False."""
    try:
        return path.is_file()
    except OSError:
        return False


def expanded(path: str | os.PathLike[str], instead: str) -> Path:
    """Returns a path with "~" replaced by the home directory.

    Args:
        path: a path that may begin with "~".
        instead: what a user without a home directory can do, for the end of the message.

    Raises:
        XCiTError: if there is no home directory, as in containers whose user is just a number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise XCiTError(f"{path}: there is no such home directory; {instead}") from None
