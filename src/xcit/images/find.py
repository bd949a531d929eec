"""Finds the image files that a user names by files, folders and patterns."""

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
    """Finds the image files that a user names by files, folders and glob patterns.

    - A URL, or "-" for standard input, is returned unchanged.
    - A file is returned whatever its suffix, even if it is missing; `read_image` reports that later. A .zarr folder
      counts as one file.
    - A folder is searched recursively for files with `IMAGE_SUFFIXES`, in natural order ("img2" before "img10"). Hidden
      files and folders are left out.
    - A pattern (`*`, `?`, `[...]`, `**` for any depth) means the files and folders that match it, unless a file with
      exactly that name exists.

    Args:
        inputs: paths, patterns and URLs.
        passed_by: counts the files that are left out.

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
    """Returns the end of an error: what was found instead of images; "" if nothing was."""
    return f"; left out: {passed_by}" if str(passed_by) else ""


def images_below(folder: Path, passed_by: PassedBy | None = None) -> list[Path]:
    """Returns the image files in a folder, recursively, in natural order and without hidden ones.

    Images are recognised by their suffix. A broken link with such a suffix is returned too, so that reading it reports
    the error.

    Args:
        folder: the folder to search.
        passed_by: counts the files that are left out.

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
        if place.resolve() in seen:  # a link to a folder above it, or a second link to one place
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
    """Whether a file's name is that of an image: it has an image suffix and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Returns a key that sorts by folder, then by name, with numbers in names sorted by value.

    `re.split` alternates between text and digits, so text is never compared with a number.
    """
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts], str(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission, or the name is too long; reading the file reports the error
        return False
