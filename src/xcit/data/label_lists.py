"""Reads lists of images and their classes: CSV files, or text files with a file name and a class in each line."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcit.data.named import Split
from xcit.data.samples import parse_class_names
from xcit.data.splits import is_number, left_out
from xcit.errors import XCiTError, some_of
from xcit.images.find import images_below
from xcit.images.formats import IMAGE_SUFFIXES
from xcit.images.passed_by import PassedBy

_STEMS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training", "train_labels", "labels_train", "trainLabels"),
    "val": ("val", "validation", "valid", "val_labels", "labels_val"),
}
"""Possible names of the list of a split, without suffix."""

_SHARED_STEMS = ("labels", "annotations", "metadata")
"""Possible names of a list of all images, without suffix."""

_SUFFIXES = (".csv", ".tsv", ".txt")

_FOLDERS = ("", "meta", "annotations")

CLASS_FILES = ("classes.txt", "class_map.txt")
"""Names of a file with one class per line, in the order of the labels.

The file is in the folder of the split or in the folder of the data set.
"""

LIST_NAMES = frozenset(
    [
        *CLASS_FILES,
        *(f"{stem}{suffix}" for stems in (*_STEMS.values(), _SHARED_STEMS) for stem in stems for suffix in _SUFFIXES),
    ]
)
"""Names of the files that are lists of images or classes."""

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "image_name",
                 "image_id", "img", "id", "name")  # fmt: skip
_LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "target", "category", "species", "breed", "level",
                  "diagnosis", "y")  # fmt: skip

_WNID = re.compile(r"n[0-9]{8}")


@dataclass(frozen=True)
class ListedImages:
    """The contents of a list of images and their classes.

    Attributes:
        items: paths of the image files, each with its label (a class index).
        class_ids: names of the classes, in the order of the labels.
        problems: one message for each kind of entry or image that was left out.
    """

    items: list[tuple[Path, int]]
    class_ids: tuple[str, ...]
    problems: tuple[str, ...]


def find_list(root: Path, place: Path, split: Split) -> Path | None:
    """Returns the path of the list of a split's images; None if there is no list.

    A list of validation images in ImageNet's form (see `_is_imagenet`) is ignored if there is no list of training
    images.

    Args:
        root: the folder of the data set.
        place: the folder of the split's images, which may be `root`.
        split: the split. If it has no list of its own, the list of all images is returned. If this list does not exist
            either, the list of the training images is returned.
    """
    own = _first(root, place, _STEMS[split])
    if split == "val" and own is not None:
        return None if _is_imagenet(own) and _first(root, place, _STEMS["train"]) is None else own
    return own or _first(root, place, _SHARED_STEMS) or _first(root, place, _STEMS["train"])


def has_validation_list(root: Path) -> bool:
    """Returns whether a folder has separate lists of training and validation images."""
    return all(_first(root, root, _STEMS[split]) is not None for split in _STEMS)


def known_classes(root: Path, place: Path) -> tuple[str, ...]:
    """Returns the class names in one of `CLASS_FILES`; an empty tuple if there is no such file.

    Raises:
        XCiTError: if a class occurs twice.
    """
    path = next((path for folder in (place, root) for name in CLASS_FILES if (path := folder / name).is_file()), None)
    if path is None:
        return ()
    names = parse_class_names(_text(path))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise XCiTError(f"{path}: the class {twice!r} occurs twice")
    return names


def read_list(path: Path, place: Path, classes: Sequence[str]) -> ListedImages:
    """Reads a list of files and their classes.

    If a list has two columns, these columns may have any names. If it has more columns, the names must show which
    column has the files and which column has the classes.

    A file name may omit the folders or the suffix if only one image matches the shorter name. A class is a name or a
    number. If `classes` is not empty, a number is an index in `classes`, from 0.

    Args:
        path: a CSV file, with or without a header line; or a text file, where each line has a file name, white space
            and a class.
        place: the folder of the images.
        classes: the class names in the order of the labels. If empty, the classes are taken from the list:
            names in alphabetical order, or numbers in numerical order.

    Raises:
        XCiTError: if a line or a class is invalid, the columns are ambiguous, or none of the images exists.
    """
    passed_by = PassedBy(known=LIST_NAMES)
    found = images_below(place, passed_by)
    image_of = _by_name(found, place)
    rows = list(_rows(path, image_of))
    class_ids = tuple(classes) or _ordered({label for _, _, label in rows})
    index_of = {name: index for index, name in enumerate(class_ids)}
    items: dict[Path, int] = {}
    absent = list[str]()
    for number, name, label in rows:
        index = index_of.get(label)
        if index is None and classes and is_number(label) and int(label) < len(classes):
            index = int(label)
        if index is None:
            raise XCiTError(f"{path}, line {number}: {label!r} is not one of the {len(class_ids)} classes")
        image = image_of.get(_key(name))
        if image is None:
            absent.append(name)
        elif items.setdefault(image, index) != index:
            raise XCiTError(
                f"{path}, line {number}: {name} has the class {label!r}, but it has the class "
                f"{class_ids[items[image]]!r} in an earlier line"
            )
    if not items:
        raise XCiTError(f"{path}: none of its {len(rows)} images is in {place}; the first: {absent[0]}")
    problems = [
        f"{path}: {len(names)} {what}: {some_of(names)}"
        for what, names in (
            (f"entries left out, because their name matches no image or several images in {place}", absent),
            (
                f"images of {place} left out, because they are not in the list",
                [p.name for p in found if p not in items],
            ),
        )
        if names
    ]
    return ListedImages(list(items.items()), class_ids, (*problems, *left_out(place, passed_by)))


def _first(root: Path, place: Path, stems: Sequence[str]) -> Path | None:
    # The folder of the images is searched first, because a list in this folder may be for this split only.
    folders = dict.fromkeys([place, *(root / name for name in _FOLDERS)])
    places = (folder / f"{stem}{suffix}" for folder in folders for stem in stems for suffix in _SUFFIXES)
    return next((path for path in places if path.is_file()), None)


def _is_imagenet(path: Path) -> bool:
    """Returns whether the first line has a class number, a wnid (WordNet id) or no class, as in ImageNet's lists."""
    words = next((line.replace(",", " ").split() for line in _text(path).splitlines() if line.strip()), [])
    return len(words) < 2 or is_number(words[1]) or _WNID.fullmatch(words[1]) is not None


def _rows(path: Path, image_of: Mapping[str, Path | None]) -> Iterator[tuple[int, str, str]]:
    """Yields the line number, the file name and the class of each entry."""
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), start=1) if line.strip()]
    if not lines:
        raise XCiTError(f"{path}: an empty list")
    cells = [(number, [cell.strip() for cell in row]) for number, row in split_lines(path, lines)]
    number, head = cells[0]
    # If the first line does not name an image, it is a header.
    has_head = _key(head[0]) not in image_of and Path(head[0]).suffix.lower() not in IMAGE_SUFFIXES
    columns = _columns(path, head) if has_head else (0, 1)
    for number, row in cells[1:] if has_head else cells:
        if len(row) <= max(columns) or (not has_head and len(row) != 2):
            raise XCiTError(f"{path}, line {number}: {','.join(row)!r} is not a file and a class")
        name, label = row[columns[0]], row[columns[1]]
        if not name or not label:
            raise XCiTError(f"{path}, line {number}: {','.join(row)!r} has no file or no class")
        yield number, name, label


def split_lines(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Splits numbered lines into cells, and yields the number and the cells of each line.

    The first line determines the separator: a tab if the line contains a tab, else a comma, else a semicolon. If the
    line contains none of them, each line is split at its last white space.

    Raises:
        XCiTError: if the first line of a CSV file has only one column.
    """
    first = lines[0][1]
    separator = next((mark for mark in "\t,;" if mark in first), "")
    if path.suffix == ".csv" and not separator:
        raise XCiTError(f"{path}: its first line {first!r} has one column: expected two")
    for number, line in lines:
        if separator:
            yield number, next(csv.reader([line], delimiter=separator))
        else:
            yield number, line.rsplit(None, 1)


def _columns(path: Path, head: Sequence[str]) -> tuple[int, int]:
    """Returns the indices of the column of file names and of the column of classes."""
    names = [name.casefold() for name in head]
    file = next((names.index(name) for name in _FILE_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    if len(names) == 2:  # two columns may have any names
        return (1, 0) if file == 1 or (label == 0 and file is None) else (0, 1)
    if file is None or label is None:
        raise XCiTError(
            f"{path}: it is not clear which of the columns {', '.join(head[:8])} have the file and the class: call the "
            "two columns file and label"
        )
    return file, label


def _by_name(images: Sequence[Path], place: Path) -> dict[str, Path | None]:
    """Returns a dict that maps names to images. If several images have the same name, the value is None.

    Each image has several names: its relative path and its file name, each with and without suffix.
    """
    found: dict[str, Path | None] = {}
    for image in images:
        below = image.relative_to(place)
        keys = {below.as_posix(), image.name, below.with_suffix("").as_posix(), image.stem}
        keys.add(f"{place.name}/{below.as_posix()}")
        for key in keys:
            found[key] = None if key in found else image
    for image in images:  # a relative path always means the image at this path, never another image of this name
        found[image.relative_to(place).as_posix()] = image
    return found


def _key(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _ordered(labels: set[str]) -> tuple[str, ...]:
    return tuple(sorted(labels, key=int) if all(map(is_number, labels)) else sorted(labels))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise XCiTError(f"{path}: can't be read: {error}") from None
