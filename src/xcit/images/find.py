"""Finds image files, given paths, folders (searched recursively) and glob patterns."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xcit.errors import XCiTError
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.images.passed_by import PassedBy
from xcit.images.sources import STANDARD_INPUT, as_url, printable


def find_images(inputs: Sequence[str | os.PathLike[str]], passed_by: PassedBy | None = None) -> list[Path]:
    """Finds the image files to which the given paths, folders and glob patterns refer.

    - A URL is returned unchanged, and so is "-", which means standard input.
    - The path of a file is returned whatever its suffix is, even if the file does not exist. In that case, `read_image`
      reports the missing file later. A .zarr folder is treated like a file.
    - A folder is searched recursively for files with a suffix in `IMAGE_SUFFIXES`. Hidden files and folders are left
      out. The files are sorted in natural order ("img2" before "img10").
    - A pattern (`*`, `?`, `[...]`, `**` for any depth) is replaced by the files and folders that match the pattern. If
      a file has exactly the name of the pattern, this file is returned instead.

    Args:
        inputs: paths, folders, patterns and URLs.
        passed_by: object that counts the files and folders that are left out; None if no counts are needed.

    Returns:
        The paths in the order of the inputs. Each file is returned once.

    Raises:
        XCiTError: if a folder contains no images or can't be read, or if no image matches a pattern.
    """
    passed_by = PassedBy() if passed_by is None else passed_by
    found: dict[str, Path] = {}
    for item in inputs:
        for path in _expand(Path(item), passed_by):
            first = found.setdefault(os.path.abspath(path), path)  # noqa: PTH100  (Path.absolute keeps "..")
            passed_by.num_again += first is not path
    return list(found.values())


def _expand(path: Path, passed_by: PassedBy) -> list[Path]:
    # A .zarr folder is one image.
    if str(path) == STANDARD_INPUT or as_url(path) is not None or path.suffix.lower() == ".zarr":
        return [path]
    if _is_folder(path):
        images = images_below(path, passed_by)
        if not images:
            raise XCiTError(f"{printable(path)}: a folder without images{_but(passed_by)}")
        return images
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    # `glob.glob` is used, because `Path.glob` refuses absolute patterns and also finds hidden files.
    matches = sorted((Path(match) for match in glob.glob(str(path), recursive=True)), key=_natural_order)  # noqa: PTH207
    images = [
        image for match in matches for image in (images_below(match, passed_by) if _is_folder(match) else [match])
    ]
    if not images:
        raise XCiTError(f"{printable(path)}: no image matches this pattern{_but(passed_by)}")
    return images


def _but(passed_by: PassedBy) -> str:
    """Returns the end of an error message: how many files and folders were left out, or "" if none were left out."""
    return f"; left out: {passed_by}" if str(passed_by) else ""


def images_below(folder: Path, passed_by: PassedBy | None = None) -> list[Path]:
    """Returns the image files in a folder and in all its subfolders, in natural order ("img2" before "img10").

    A file is an image if its suffix is in `IMAGE_SUFFIXES`. Hidden files and folders are left out. A broken link with
    an image suffix is also returned, so that an error is raised when the link is read.

    Args:
        folder: the folder.
        passed_by: object that counts the files and folders that are left out; None if no counts are needed.

    Raises:
        XCiTError: if a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise XCiTError(f"{printable(Path(error.filename))}: the folder cannot be read ({error.strerror})") from error

    passed_by = PassedBy() if passed_by is None else passed_by
    images = []
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(parent)
        if place.resolve() in seen:  # a link to a parent folder, or a second link to the same folder
            passed_by.num_again += 1
            folders.clear()
            continue
        seen.add(place.resolve())
        shown = sorted(name for name in folders if not name.startswith("."))
        passed_by.num_hidden += len(folders) - len(shown)
        folders[:] = shown
        for path in (place / name for name in files):
            if is_image_name(path):
                images.append(path)
            else:
                passed_by.add(path)
    return sorted(images, key=_natural_order)


def is_image_name(path: Path) -> bool:
    """Returns whether a name has a suffix in `IMAGE_SUFFIXES` and is not hidden. Hidden names begin with a dot."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Returns a sort key: first by folder, then by name. Digits in a name are compared as numbers.

    `re.split` alternates between text and digits, so a text is never compared with a number.
    """
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts], str(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or the name is too long: reading the file later reports the error
        return False
