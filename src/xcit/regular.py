"""Files that can be read to an end: opening a pipe could wait for ever, and a device such as /dev/zero never ends."""

import errno
import os
import stat
from pathlib import Path


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
