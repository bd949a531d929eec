"""Paths that can be used: opening a pipe could wait for ever, a device may never end, and not every user has a home."""

import errno
import os
import stat
from pathlib import Path

from xcit.errors import XCiTError


def regular(path: str | os.PathLike[str]) -> Path:
    """The path itself, for `open` and the like, unless there is something else than a file at it.

    Raises:
        OSError: if it is a pipe, a socket or a device. Of what is missing, or a folder, opening says so itself.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError):  # ValueError: a zero byte in its name
        return place
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file, but a pipe, a socket or a device", str(place))
    return place


def is_file(path: Path) -> bool:
    """Whether there is a file at a path that was read somewhere, which may be no path at all, such as one too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def expanded(path: str | os.PathLike[str], instead: str) -> Path:
    """A path whose "~" is the home directory.

    Args:
        path: that may begin with "~".
        instead: what a person without a home directory can do, which ends the error.

    Raises:
        XCiTError: if there is none, as in containers whose user is a mere number.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise XCiTError(f"{path}: there is no such home directory; {instead}") from None
