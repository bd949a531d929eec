"""Finds the training and the validation images among the folders of a data set, by their usual names."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xcit.data.named import Split
from xcit.errors import XCiTError
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.images.passed_by import PassedBy

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test", "testing"),
}
"""Names of a split's folder, in upper or lower case; if several folders exist, the first name here is used."""

_ALL_NAMES = (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"])

_NOT_CLASSES = frozenset({"meta", "__macosx"})

_SPLIT_WORDS = frozenset({"dev", "eval", "holdout", "trn", "tst", *_ALL_NAMES})


@dataclass(frozen=True)
class FoundSplits:
    """The contents of a folder of images.

    Attributes:
        root: the folder, or the only folder in it.
        folders: the folders of its splits; empty if its folders are classes.
        unused: folders beside the splits, which are not read.
    """

    root: Path
    folders: Mapping[Split, Path]
    unused: tuple[str, ...] = ()

    def of(self, split: Split) -> Path:
        """Returns the folder of a split. A folder without splits, or with training images only, serves as both.

        Raises:
            XCiTError: if there are only validation images, and the training images are requested.
        """
        if split == "train" and self.folders and "train" not in self.folders:
            raise XCiTError(
                f"{self.root}: no images to train on: its folder {self.folders['val'].name} is of images to measure "
                f"on; expected a folder {SPLIT_NAMES['train'][0]} beside it"
            )
        return self.folders.get(split, self.folders.get("train", self.root))

    @property
    def has_val(self) -> bool:
        """Whether there are validation images beside the training images."""
        return "val" in self.folders


def find_splits(folder: Path) -> FoundSplits:
    """Finds the splits of a folder; if it contains only one folder, as archives do, that one is used.

    Folders are splits if there is one for training and one for validation, or if all of them have names of splits.
    Otherwise they are classes, so that a class may be called "train".
    """
    root = below_single_folders(folder)
    names = {entry.name: entry for entry in subfolders(root)}
    by_name = {name.casefold(): entry for name, entry in names.items()}
    found: dict[Split, Path] = {}
    for split, possible in SPLIT_NAMES.items():
        place = next((by_name[name] for name in possible if name in by_name), None)
        if place is not None:
            found[split] = place
    are_all_splits = all(name in _ALL_NAMES for name in by_name)
    if len(found) < len(SPLIT_NAMES) and not are_all_splits:
        return FoundSplits(root, {})
    unused = tuple(name for name, entry in names.items() if found and entry not in found.values())
    return FoundSplits(root, {split: below_single_folders(place, stop_at=()) for split, place in found.items()}, unused)


def below_single_folders(folder: Path, stop_at: Collection[str] = _ALL_NAMES) -> Path:
    """Descends into the only folder of a folder without images, as long as the inner folder contains folders."""
    place = folder
    while True:
        inside = list(subfolders(place))
        if len(inside) != 1 or _has_files_of_data(place) or _has_files_of_data(inside[0]):
            return place
        if not any(True for _ in subfolders(inside[0])) or inside[0].name.casefold() in stop_at:
            return place
        place = inside[0]


def subfolders(folder: Path, passed_by: PassedBy | None = None) -> Iterator[Path]:
    """Yields the folders that may be classes or splits, sorted by name; names such as 0, 1, 2 are sorted as numbers.

    Args:
        folder: where to look.
        passed_by: counts the folders that are left out.

    Raises:
        XCiTError: if the folder can't be read.
    """
    try:
        folders = [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise XCiTError(f"{folder}: the folder cannot be read ({error.strerror})") from None
    shown = [entry for entry in folders if not entry.name.startswith(".")]
    entries = [entry for entry in shown if entry.name.casefold() not in _NOT_CLASSES]
    if passed_by is not None:
        passed_by.num_hidden += len(folders) - len(shown)
        passed_by.num_no_classes += len(shown) - len(entries)
    if all(is_number(entry.name) for entry in entries):
        yield from sorted(entries, key=lambda entry: (int(entry.name), entry.name))
    else:
        yield from sorted(entries)


def left_out(folder: Path, passed_by: PassedBy) -> list[str]:
    """Returns a line about the files that a search for images left out; an empty list if it left out no files."""
    return [f"{folder}: left out: {passed_by}"] if str(passed_by) else []


def is_number(name: str) -> bool:
    """Whether a name is a whole number from 0 in plain digits, not longer than any class number."""
    return name.isascii() and name.isdecimal() and len(name) <= 6


def check_classes(class_ids: tuple[str, ...], where: str) -> None:
    """Checks that classes can be trained on: there must be several, and folders must not have names of splits.

    Raises:
        XCiTError: if they can't; the message says how the folders were understood.
    """
    if len(class_ids) == 1:
        raise XCiTError(
            f"{where}: one class, {class_ids[0]!r}: a model learns to tell classes apart; expected a folder for each "
            "class, or folders train and val with those in them"
        )
    if class_ids and all(_has_split_word(name) for name in class_ids):
        raise XCiTError(
            f"{where}: its folders {', '.join(map(repr, class_ids[:3]))} would be the classes, and their names are of "
            "splits: call them train and val"
        )


def _has_split_word(name: str) -> bool:
    words = re.split(r"[-_. ]+|(?<=[a-z])(?=[0-9])", name.casefold())
    return not _SPLIT_WORDS.isdisjoint(words)


def _has_files_of_data(folder: Path) -> bool:
    """Whether the folder itself contains images or lists of images."""
    suffixes = {*IMAGE_SUFFIXES, ".csv", ".tsv"}
    return any(entry.suffix.lower() in suffixes and entry.is_file() for entry in folder.iterdir())
