"""Checks paths before they are opened, and expands "~".

Opening a pipe could wait forever, and reading a device might never end.
"""

import errno
import os
import stat
from pathlib import Path

from xcit.errors import XCiTError


def regular(path: str | os.PathLike[str]) -> Path:
    """Returns a path, after a check that it is not a pipe, a socket or a device.

    This function raises no error for a missing file or for a folder, because opening them raises an error anyway.

    Raises:
        OSError: if the path is a pipe, a socket or a device.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
    except (OSError, ValueError):  # ValueError: the path contains a zero byte
        return place
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file, but a pipe, a socket or a device", str(place))
    return place


def is_file(path: Path) -> bool:
    """Returns whether a path is a file; false for text that can't be a path, such as text that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def expanded(path: str | os.PathLike[str], instead: str) -> Path:
    """Replaces "~" at the beginning of a path with the home directory.

    Args:
        path: a path that may begin with "~".
        instead: the end of the error message: what a user without a home directory can do.

    Raises:
        XCiTError: if there is no home directory, for example in a container whose user has only a numeric id.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise XCiTError(f"{path}: there is no such home directory; {instead}") from None
