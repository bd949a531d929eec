"""Which of a folder's folders are the images to train on, and which those to measure on, however they are called."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from xcit.data.named import Split
from xcit.errors import XCiTError
from xcit.images.formats import IMAGE_SUFFIXES

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test", "testing"),
}
"""What folders of a split are called, in any case; where there are several the first of these is taken."""

_ALL_NAMES = (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"])

_NOT_CLASSES = frozenset({"meta", "__macosx"})

_SPLIT_WORDS = frozenset({"dev", "eval", "holdout", "trn", "tst", *_ALL_NAMES})


@dataclass(frozen=True)
class FoundSplits:
    """What a folder of images holds.

    Attributes:
        root: the folder, or the one that is all there is in it.
        folders: of the splits that it has; none where its folders are classes.
        unused: folders beside the splits, which nothing reads.
    """

    root: Path
    folders: Mapping[Split, Path]
    unused: tuple[str, ...] = ()

    def of(self, split: Split) -> Path:
        """The folder of a split: a folder without splits, or with images to train on alone, serves as either.

        Raises:
            XCiTError: if there are images to measure on alone, and those to train on are asked for.
        """
        if split == "train" and self.folders and "train" not in self.folders:
            raise XCiTError(
                f"{self.root}: no images to train on: its folder {self.folders['val'].name} is of images to measure "
                f"on; expected a folder {SPLIT_NAMES['train'][0]} beside it"
            )
        return self.folders.get(split, self.folders.get("train", self.root))

    @property
    def has_val(self) -> bool:
        """Whether there are images to measure on beside those to train on."""
        return "val" in self.folders


def find_splits(folder: Path) -> FoundSplits:
    """Finds the splits of a folder, looking through a single folder in it, as archives have one.

    Folders are splits if there is one to train on and one to measure on, or if all of them are called so; else they are
    classes, so that a class may be called "train".
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
    """The folder, or the only one in it as long as that holds folders itself and there are no images beside it."""
    place = folder
    while True:
        inside = list(subfolders(place))
        if len(inside) != 1 or _has_files_of_data(place) or _has_files_of_data(inside[0]):
            return place
        if not any(True for _ in subfolders(inside[0])) or inside[0].name.casefold() in stop_at:
            return place
        place = inside[0]


def subfolders(folder: Path) -> Iterator[Path]:
    """The folders that may be classes or splits, in the order of their names; those named 0, 1, 2 in that of numbers.

    Raises:
        XCiTError: if the folder can't be read.
    """
    try:
        entries = [
            entry
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and entry.name.casefold() not in _NOT_CLASSES and entry.is_dir()
        ]
    except OSError as error:
        raise XCiTError(f"{folder}: the folder cannot be read ({error.strerror})") from None
    if all(is_number(entry.name) for entry in entries):
        yield from sorted(entries, key=lambda entry: (int(entry.name), entry.name))
    else:
        yield from sorted(entries)


def left_out(folder: Path, others: Counter[str]) -> list[str]:
    """A line about the files that `images_below` counted as no images; none where there were none."""
    if not others:
        return []
    kinds = ", ".join(f"{suffix} ({count})" for suffix, count in others.most_common(5))
    return [f"{folder}: {others.total()} files left out, for they are no images by their suffix: {kinds}"]


def is_number(name: str) -> bool:
    """Whether a name is a whole number from 0 in plain digits, of no more of them than a class has."""
    return name.isascii() and name.isdecimal() and len(name) <= 6


def check_classes(class_ids: tuple[str, ...], where: str) -> None:
    """Refuses what can't be the classes to train on: a single one, or folders whose names are of splits.

    Raises:
        XCiTError: saying what was understood.
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
    """Whether images or lists of them lie in the folder itself."""
    suffixes = {*IMAGE_SUFFIXES, ".csv", ".tsv"}
    return any(entry.suffix.lower() in suffixes and entry.is_file() for entry in folder.iterdir())
