"""Finds the JSON file and the folder of images of a split of a data set in COCO's format."""

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
"""Possible paths of a split's JSON file in the folder of the data set, in the order in which they are tried.

Case is ignored. `_annotations.coco.json` is the name that Roboflow uses.
"""

_ONLY_FILES = (
    "annotations/instances_default.json",
    "result.json",
    "_annotations.coco.json",
    "annotations.json",
    "instances.json",
)
"""Possible paths of a JSON file with the images of all splits, as CVAT, Label Studio and others write it."""

_IMAGE_FOLDERS = ("{split}2017", "{split}", "images/{split}2017", "images/{split}", "images", ".", "images/default")
"""Possible folders of a split's images, in the order in which they are tried.

The paths are relative to the folder of the data set. If the data set is given as a JSON file, the paths are relative to
the folder of this file, or to the parent of this folder.
"""


def annotation_file(data: Path, split: Split) -> Path:
    """Returns the path of a split's JSON file in the folder `data`; if `data` is a file, returns `data`.

    Raises:
        XCiTError: if no JSON file is found.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise XCiTError(f"{data}: no such folder or file; data must be a folder or a JSON file in COCO's format")
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
    """Returns the file at the path `place` in the folder `root`, ignoring case; None if there is no such file."""
    if (root / place).is_file():
        return root / place
    found = [root]
    for part in place.split("/"):
        found = [entry for folder in found for entry in _entries(folder) if entry.name.casefold() == part.casefold()]
    return next((path for path in found if path.is_file()), None)


def _entries(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.iterdir()))
    except OSError:  # `folder` is a file, or can't be read
        return ()


def has_annotations_of(data: str, split: Split) -> bool:
    """Returns whether a split has a JSON file of its own; a JSON file for all splits does not count."""
    root = Path(data)
    if not root.is_dir():
        return False
    root = below_single_folders(root)
    return any(_in_any_case(root, place) is not None for place in _places_of(split))


def image_folder(data: Path, source: Path, split: Split, first: Sequence[str]) -> Path:
    """Returns the folder of a split's images: the first possible folder that contains one of the images in `first`.

    If there is no such folder, returns the first possible folder that exists.

    Args:
        data: path of the data set: a folder or a JSON file.
        source: path of the JSON file.
        split: the split.
        first: file names of the first images in the JSON file.
    """
    roots = [below_single_folders(data), data] if data.is_dir() else [source.parent, source.parent.parent]
    # If `data` is the file `val.json`, the images are in the folder `val`, even if `split` is "train".
    own = [source.parent / source.stem] if data.is_file() else [source.parent]
    splits = [name for name in (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"]) if name in source.stem.casefold()]
    if data.is_dir():
        splits = [*SPLIT_NAMES[split], *(name.capitalize() for name in SPLIT_NAMES[split])]
    places = [
        *own,
        *(root / place.format(split=name) for name in splits or [split] for root in roots for place in _IMAGE_FOLDERS),
    ]
    # The second pass ignores the folders in a file name, because these folders may exist only on another machine.
    for whole in (True, False):
        for place in places:
            if any(is_file(place / (name if whole else Path(name).name)) for name in first):
                return place
    return next((place for place in places[1:] if place.is_dir()), source.parent)


def names_in(folder: Path) -> frozenset[str]:
    """Returns the names of the files in a folder; an empty set if the folder can't be read.

    For 100,000 files, listing the folder is faster than checking each file.
    """
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # ValueError: the path contains a zero byte
        return frozenset()
