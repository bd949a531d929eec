"""Finds image files by paths, folders (searched recursively) and patterns."""

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
    """Finds the image files that are named by paths, folders and glob patterns.

    - A URL, and "-" for standard input, are returned unchanged.
    - A file is returned with any suffix, and even if it does not exist (`read_image` then reports it). A .zarr folder
      counts as a file.
    - A folder is searched recursively for files with `IMAGE_SUFFIXES`, without hidden files and folders, in natural
      order ("img2" before "img10").
    - A pattern (`*`, `?`, `[...]`, `**` for any depth) is replaced by the files and folders that match it, unless a
      file has exactly this name.

    Args:
        inputs: paths, folders, patterns and URLs.
        passed_by: counts the files and folders that are left out.

    Returns:
        The paths in the order of the inputs, each file once.

    Raises:
        XCiTError: if a folder has no images, or a pattern no match.
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
    # Path.glob refuses absolute patterns and finds hidden files.
    matches = sorted((Path(match) for match in glob.glob(str(path), recursive=True)), key=_natural_order)  # noqa: PTH207
    images = [
        image for match in matches for image in (images_below(match, passed_by) if _is_folder(match) else [match])
    ]
    if not images:
        raise XCiTError(f"{printable(path)}: no image matches this pattern{_but(passed_by)}")
    return images


def _but(passed_by: PassedBy) -> str:
    """Returns the end of an error text: the files and folders that were left out."""
    return f"; left out: {passed_by}" if str(passed_by) else ""


def images_below(folder: Path, passed_by: PassedBy | None = None) -> list[Path]:
    """Returns the image files in a folder and all its subfolders, by suffix, in natural order, without hidden files.

    A broken link with an image's suffix is returned too, so that its reader reports it.

    Args:
        folder: the folder.
        passed_by: counts the files and folders that are left out.

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
    """Whether a file's name is that of an image: it has an image's suffix and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Sort key that orders by folder, then by name, with numbers by their values.

    `re.split` returns text and digits alternately, so a text is never compared with a number.
    """
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts], str(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or a name that is too long: the reader reports it
        return False
