"""Writes results completely or not at all, so that a failed run leaves an earlier result unchanged."""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xcit.errors import XCiTError

_TEMPORARY = ".xcit-{}.tmp"
"""Names of unfinished files. They are hidden, and new each time, so that they replace no file of a user."""

_MAX_LINKS = 40
"""Number of links in a chain that the operating system follows."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new, empty file to write; it gets the name `path` after the body has finished and the file is on disk.

    Until then, an earlier file of that name is unchanged; it also stays if the body fails or removes the new file.
    If `path` is a link, its target is replaced, and the link stays. A device, a pipe or another path that is not a
    regular file is never replaced: the bytes are written into it at the end.

    Raises:
        XCiTError: "<path>: can't be written: <reason>", also for an `OSError` in the body.
    """
    path = Path(path)
    try:
        if is_stream(path):
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / "part"
                part.touch()
                yield part
                if part.exists():
                    with part.open("rb") as source, path.open("wb") as target:
                        shutil.copyfileobj(source, target)
            return
        place = _followed(path)
        if place.is_dir():
            raise XCiTError(f"{path}: can't be written: Is a directory")
        part = _beside(place)
        try:
            with part.open("xb") as file:
                mode = os.fstat(file.fileno()).st_mode
            yield part
            if part.exists():
                part.chmod(mode)  # safetensors creates files that only the owner can read
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                part.replace(place)
        finally:
            with suppress(OSError):
                part.unlink()
    except OSError as error:
        raise XCiTError(f"{path}: can't be written: {error.strerror or error}") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill. Its entries move into `folder` when the body has finished; after a failure none remain.

    Raises:
        XCiTError: if `folder` is not empty, is a file, or can't be created or written.
    """
    is_new = not folder.exists()
    if not is_new and (not folder.is_dir() or any(not _is_temporary(entry) for entry in folder.iterdir())):
        raise XCiTError(f"{folder}: is there already: choose another folder, or remove it")
    make_folder(folder)
    # The temporary folder is inside, because `folder` may be on another disk than its parent.
    part = _beside(folder / "part")
    try:
        try:
            part.mkdir()
            yield part
            for entry in part.iterdir():
                entry.rename(folder / entry.name)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # if it is not empty, the body has finished
                    folder.rmdir()
    except OSError as error:
        raise XCiTError(f"{folder}: can't be written: {error.strerror or error}") from error


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files of killed processes from a folder. No other process may write into it now.

    `whole_file` gives each unfinished file a new name, so that they would otherwise fill the disk after many kills.
    """
    for part in folder.glob(_TEMPORARY.format("*")):
        with suppress(OSError):
            part.unlink()


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        XCiTError: if a folder can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XCiTError(f"{folder}: can't be made: {error.strerror}") from None


def is_stream(path: Path) -> bool:
    """Returns whether a path exists and takes bytes, but is not a file that could be replaced.

    Such paths are devices, pipes and sockets, and everything that is open as a descriptor of a process (`/dev/stdout`).
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _followed(path).parent.resolve().is_relative_to("/proc")


def _followed(path: Path) -> Path:
    """Returns the end of a chain of links, whether it exists or not; links in `/proc` stay, as they lead to no path."""
    for _ in range(_MAX_LINKS):
        if not path.is_symlink() or path.parent.resolve().is_relative_to("/proc"):
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _beside(path: Path) -> Path:
    return path.with_name(_TEMPORARY.format(secrets.token_hex(8)))


def _is_temporary(path: Path) -> bool:
    start, end = _TEMPORARY.split("{}")
    return path.name.startswith(start) and path.name.endswith(end)
