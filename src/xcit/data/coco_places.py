"""Finds the files of COCO-format data: the annotations of a split, and the folder of its images."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from xcit.data.named import Split
from xcit.data.splits import SPLIT_NAMES, below_single_folders
from xcit.errors import XCiTError
from xcit.regular import is_file

_ANNOTATION_FILES = (
    "annotations/instances_{split}2017.json",
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}/annotations.json",
    "{split}/result.json",
    "{split}.json",
)
"""Paths in a folder where the JSON file of a split is searched, in this order, ignoring case; one is Roboflow's."""

_ONLY_FILES = (
    "annotations/instances_default.json",
    "result.json",
    "_annotations.coco.json",
    "annotations.json",
    "instances.json",
)
"""Names of files for all splits, as written by CVAT, Label Studio and others. Such a file is used for both splits."""

_IMAGE_FOLDERS = ("{split}2017", "{split}", "images/{split}2017", "images/{split}", "images", ".", "images/default")
"""Folders where the images of a split are searched, in this order: in the data's folder, or near the JSON file."""


def annotation_file(data: Path, split: Split) -> Path:
    """Returns the JSON file of a split in a folder; if `data` is a file, returns it.

    Raises:
        XCiTError: if there is no such file.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise XCiTError(f"{data}: no such folder or file; data is a folder in COCO's form, or a COCO-format JSON file")
    root = below_single_folders(data)
    for place in (*_places_of(split), *_ONLY_FILES):
        found = _in_any_case(root, place)
        if found is not None:
            return found
    others = {name for names in SPLIT_NAMES.values() for name in names}
    files = [
        path
        for path in sorted(root.glob("*.json"))
        if not path.name.startswith(".") and others.isdisjoint(re.split(r"[^a-z]+", path.stem.casefold()))
    ]
    if len(files) == 1:
        return files[0]
    first, _, third, *_ = _ANNOTATION_FILES
    raise XCiTError(
        f"{data}: no annotations of the split {split!r}: expected {data / first.format(split=split)}, or "
        f"{data / third.format(split=split)}"
    )


def _places_of(split: Split) -> list[str]:
    return [place.format(split=name) for name in SPLIT_NAMES[split] for place in _ANNOTATION_FILES]


def _in_any_case(root: Path, place: str) -> Path | None:
    """Returns the file with a path relative to a folder, ignoring case; None if there is none."""
    if (root / place).is_file():
        return root / place
    found = [root]
    for part in place.split("/"):
        found = [entry for folder in found for entry in _entries(folder) if entry.name.casefold() == part.casefold()]
    return next((path for path in found if path.is_file()), None)


def _entries(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.iterdir()))
    except OSError:  # it is a file, or can't be read
        return ()


def has_annotations_of(data: str, split: Split) -> bool:
    """Returns whether a split has its own annotation file; a file for all splits does not count."""
    root = Path(data)
    if not root.is_dir():
        return False
    root = below_single_folders(root)
    return any(_in_any_case(root, place) is not None for place in _places_of(split))


def image_folder(data: Path, source: Path, split: Split, first: Sequence[str]) -> Path:
    """Returns the first folder that contains one of the images named in `first`; else the first folder that exists."""
    roots = [below_single_folders(data), data] if data.is_dir() else [source.parent, source.parent.parent]
    # The images of `val.json` are in `val`, even if the user asks for another split.
    own = [source.parent / source.stem] if data.is_file() else [source.parent]
    splits = [name for name in (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"]) if name in source.stem.casefold()]
    if data.is_dir():
        splits = [*SPLIT_NAMES[split], *(name.capitalize() for name in SPLIT_NAMES[split])]
    places = [
        *own,
        *(root / place.format(split=name) for name in splits or [split] for root in roots for place in _IMAGE_FOLDERS),
    ]
    for whole in (True, False):  # the folders in a name may be those of another machine
        for place in places:
            if any(is_file(place / (name if whole else Path(name).name)) for name in first):
                return place
    return next((place for place in places[1:] if place.is_dir()), source.parent)


def names_in(folder: Path) -> frozenset[str]:
    """Returns the names of the files in a folder: one listing is faster than a check of each of 100,000 files."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # ValueError: the name contains a zero byte
        return frozenset()
