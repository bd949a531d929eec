"""How results reach the disk: whole or not at all, so that a run that fails leaves an earlier result as it was."""

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
"""Names of what is not whole yet. Hidden, and new each time: it replaces nobody's file."""

_MAX_LINKS = 40
"""Links from one to the next that the operating system follows."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty file to write, which gets the name `path` when the body has ended well and it is on the disk.

    An earlier file of that name stays as it was until then, and for ever where the body fails, or removes the new file.
    Of a link the target is replaced, and the link stays. What is no regular file, such as a device or a pipe, is never
    replaced: the bytes are written into it at the end.

    Raises:
        XCiTError: "<path>: can't be written: <reason>", also for an `OSError` of the body.
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
                part.chmod(mode)  # safetensors makes a file that only its owner may read
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
    """A folder to fill, whose entries move into `folder` when the body has ended well; a failure leaves none behind.

    Raises:
        XCiTError: if `folder` holds something, is a file, or can't be made or written.
    """
    is_new = not folder.exists()
    if not is_new and (not folder.is_dir() or any(not _is_temporary(entry) for entry in folder.iterdir())):
        raise XCiTError(f"{folder}: is there already: choose another folder, or remove it")
    make_folder(folder)
    # Within the folder, which may be a disk of its own.
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
                with suppress(OSError):  # it is not empty: all went well
                    folder.rmdir()
    except OSError as error:
        raise XCiTError(f"{folder}: can't be written: {error.strerror or error}") from error


def remove_unfinished(folder: Path) -> None:
    """Removes the files that killed processes had begun to write in a folder, which no other process writes into now.

    `whole_file` gives each a new name, so that those of large files would fill the disk kill by kill.
    """
    for part in folder.glob(_TEMPORARY.format("*")):
        with suppress(OSError):
            part.unlink()


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        XCiTError: if it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XCiTError(f"{folder}: can't be made: {error.strerror}") from None


def is_stream(path: Path) -> bool:
    """Whether a path is there and leads to what bytes go into, but no file that could be replaced by another.

    That is a device, a pipe or a socket, and whatever a descriptor of a process is open on (`/dev/stdout`).
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _followed(path).parent.resolve().is_relative_to("/proc")


def _followed(path: Path) -> Path:
    """What a chain of links leads to, there or not; a link of `/proc`, which is no path, stays."""
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
