"""Finds the image files that a person means: files, folders with all below them, patterns."""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xcit.errors import XCiTError
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.images.sources import STANDARD_INPUT, as_url, printable


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Finds the image files that a person means by files, folders and glob patterns.

    A URL and "-", standard input, are taken as they are. A file is taken whatever its suffix, even if it is missing
    (`read_image` says so), and a .zarr folder as one file; a folder is searched with all below it for `IMAGE_SUFFIXES`,
    hidden files and folders left out, "img2" before "img10"; a pattern (`*`, `?`, `[...]`, `**` for any depth) stands
    for the files and folders that match it, unless a file has just that name.

    Returns:
        The paths in the order of the inputs, each file once.

    Raises:
        XCiTError: if a folder has no images, or a pattern no match.
    """
    found: dict[str, Path] = {}
    for item in inputs:
        for path in _expand(Path(item)):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100  (Path.absolute keeps "..")
    return list(found.values())


def _expand(path: Path) -> list[Path]:
    # A .zarr folder is one image.
    if str(path) == STANDARD_INPUT or as_url(path) is not None or path.suffix.lower() == ".zarr":
        return [path]
    if _is_folder(path):
        images = images_below(path)
        if not images:
            raise XCiTError(f"{printable(path)}: a folder without images")
        return images
    if not glob.has_magic(str(path)) or os.path.lexists(path):
        return [path]
    # Path.glob refuses absolute patterns and finds hidden files.
    matches = sorted((Path(match) for match in glob.glob(str(path), recursive=True)), key=_natural_order)  # noqa: PTH207
    images = [image for match in matches for image in (images_below(match) if _is_folder(match) else [match])]
    if not images:
        raise XCiTError(f"{printable(path)}: no image matches this pattern")
    return images


def images_below(folder: Path, others: Counter[str] | None = None) -> list[Path]:
    """The image files in a folder and all below it, by suffix and in natural order, hidden ones left out.

    Args:
        folder: where to look.
        others: counts the files that are left out for their suffix, by it.

    Raises:
        XCiTError: if a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise XCiTError(f"{printable(Path(error.filename))}: the folder cannot be read ({error.strerror})") from error

    images = []
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        place = Path(parent)
        if place.resolve() in seen:  # a link to a folder above it, or a second link to one place
            folders.clear()
            continue
        seen.add(place.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(place / name)
            elif others is not None and not name.startswith(".") and name != "Thumbs.db":
                others[suffix or "no suffix"] += 1
    return sorted(images, key=_natural_order)


def _natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Orders by folder, then name, numbers in them by value. `re.split` puts text and digits in turns: never mixed."""
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(piece) if index % 2 else piece for index, piece in enumerate(part)] for part in parts], str(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # no permission to look, name too long: for the reader to report
        return False
