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
"""Name of an unfinished file. It is hidden, and `{}` is random text, so that no file of the user is replaced."""

_MAX_LINKS = 40
"""Largest number of symbolic links that are followed in a chain; Linux has the same limit."""


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of a new, empty file to write. When the `with` block ends, the file is renamed to `path`.

    An earlier file at `path` is unchanged until the renaming, and also if the block fails or removes the new file. If
    `path` is a symbolic link, the target of the link is replaced. A device, a pipe or another path that is not a
    regular file is never replaced. Instead, the content of the new file is copied into it at the end.

    Raises:
        XCiTError: if `path` can't be written, or the block raises an `OSError`.
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
    """Yields a temporary folder to fill. When the `with` block ends, its entries are moved to `folder`.

    If the block fails, the entries are removed.

    Raises:
        XCiTError: if `folder` is not empty, is a file, or can't be created or written.
    """
    is_new = not folder.exists()
    if not is_new and (not folder.is_dir() or any(not _is_temporary(entry) for entry in folder.iterdir())):
        raise XCiTError(f"{folder} already exists: choose another folder, or remove it")
    make_folder(folder)
    # The temporary folder is inside `folder`, because the parent of `folder` may be on another disk.
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
                with suppress(OSError):  # `rmdir` fails if the block succeeded, because `folder` then has entries
                    folder.rmdir()
    except OSError as error:
        raise XCiTError(f"{folder}: can't be written: {error.strerror or error}") from error


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files of killed processes from a folder. No other process may use the folder meanwhile.

    Each call of `whole_file` uses a new name, so the unfinished files of many killed processes could fill the disk.
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
    """Returns whether a path exists and can be written to, but can't be replaced by a new file.

    Examples are devices, pipes, sockets, and links to the open files of a process, such as `/dev/stdout`.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _followed(path).parent.resolve().is_relative_to("/proc")


def _followed(path: Path) -> Path:
    """Follows a chain of symbolic links and returns the last path, which need not exist.

    Links in `/proc` are not followed, because their targets may have no path.
    """
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
