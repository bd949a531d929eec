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
"""Accepted names of a split's folder, in upper or lower case. The first name for which a folder exists is used."""

_ALL_NAMES = (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"])

_NOT_CLASSES = frozenset({"meta", "__macosx"})

_SPLIT_WORDS = frozenset({"dev", "eval", "holdout", "trn", "tst", *_ALL_NAMES})


@dataclass(frozen=True)
class FoundSplits:
    """The splits in a folder of images.

    Attributes:
        root: the folder itself, or the only folder in it.
        folders: maps each split to its folder; empty if the folders in `root` are classes.
        unused: names of other folders in `root`, which are not read.
    """

    root: Path
    folders: Mapping[Split, Path]
    unused: tuple[str, ...] = ()

    def of(self, split: Split) -> Path:
        """Returns the folder of a split.

        If there is no folder of validation images, returns the folder of training images. If there are no splits,
        returns `root`.

        Raises:
            XCiTError: if `split` is "train", but there are only validation images.
        """
        if split == "train" and self.folders and "train" not in self.folders:
            raise XCiTError(
                f"{self.root}: no training images: its folder {self.folders['val'].name} has validation images; "
                f"expected a folder {SPLIT_NAMES['train'][0]} beside this folder"
            )
        return self.folders.get(split, self.folders.get("train", self.root))

    @property
    def has_val(self) -> bool:
        """Whether there is a folder of validation images."""
        return "val" in self.folders


def find_splits(folder: Path) -> FoundSplits:
    """Finds the splits in a folder of images.

    If the folder contains only one folder, as many archives do, the inner folder is searched instead. The subfolders
    are splits if one of them is for training and one is for validation, or if all of them have names of splits.
    Otherwise, the subfolders are classes, so a class may be called "train".
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
    """Descends from a folder without images into its only subfolder, repeatedly, and returns the last folder.

    The function does not descend into a folder that contains images, has no subfolders, or has a name in `stop_at`.
    """
    place = folder
    while True:
        inside = list(subfolders(place))
        if len(inside) != 1 or _has_files_of_data(place) or _has_files_of_data(inside[0]):
            return place
        if not any(True for _ in subfolders(inside[0])) or inside[0].name.casefold() in stop_at:
            return place
        place = inside[0]


def subfolders(folder: Path, passed_by: PassedBy | None = None) -> Iterator[Path]:
    """Yields the subfolders that may be classes or splits, sorted by name, or by number if all names are numbers.

    Args:
        folder: the folder whose subfolders are listed.
        passed_by: counts the subfolders that are left out.

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
    """Returns a list with one message about the files that were left out; an empty list if no file was left out."""
    return [f"{folder}: left out: {passed_by}"] if str(passed_by) else []


def is_number(name: str) -> bool:
    """Returns whether a name consists of one to six decimal digits, so that it can be a class number."""
    return name.isascii() and name.isdecimal() and len(name) <= 6


def check_classes(class_ids: tuple[str, ...], where: str) -> None:
    """Checks that a model can be trained on these classes.

    Raises:
        XCiTError: if there is only one class, or the names of all classes look like names of splits.
    """
    if len(class_ids) == 1:
        raise XCiTError(
            f"{where}: only one class, {class_ids[0]!r}, but training needs two or more; expected a folder for each "
            "class, or folders train and val with class folders in them"
        )
    if class_ids and all(_has_split_word(name) for name in class_ids):
        raise XCiTError(
            f"{where}: its folders {', '.join(map(repr, class_ids[:3]))} would be the classes, but these are names of "
            "splits: call the folders train and val"
        )


def _has_split_word(name: str) -> bool:
    words = re.split(r"[-_. ]+|(?<=[a-z])(?=[0-9])", name.casefold())
    return not _SPLIT_WORDS.isdisjoint(words)


def _has_files_of_data(folder: Path) -> bool:
    """Returns whether the folder itself, without its subfolders, contains image files or CSV or TSV files."""
    suffixes = {*IMAGE_SUFFIXES, ".csv", ".tsv"}
    return any(entry.suffix.lower() in suffixes and entry.is_file() for entry in folder.iterdir())
