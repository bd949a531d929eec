"""Lists of images with the class of each, beside a folder of images: a CSV, or lines of a file's name and its class."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xcit.data.named import Split
from xcit.data.samples import parse_class_names
from xcit.data.splits import is_number
from xcit.errors import XCiTError, some_of
from xcit.images.find import images_below
from xcit.images.formats import IMAGE_SUFFIXES

_STEMS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training", "train_labels", "labels_train", "trainLabels"),
    "val": ("val", "validation", "valid", "val_labels", "labels_val"),
}
"""What a split's list is called."""

_SHARED_STEMS = ("labels", "annotations", "metadata")
"""What a list of all images is called."""

_SUFFIXES = (".csv", ".tsv", ".txt")

_FOLDERS = ("", "meta", "annotations")

CLASS_FILES = ("classes.txt", "class_map.txt")
"""The classes in the order of their labels, one a line: beside the images, or beside the folders of the splits."""

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "image_name",
                 "image_id", "img", "id", "name")  # fmt: skip
_LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "target", "category", "species", "breed", "level",
                  "diagnosis", "y")  # fmt: skip

_WNID = re.compile(r"n[0-9]{8}")


@dataclass(frozen=True)
class ListedImages:
    """What a list says.

    Attributes:
        items: image files, each with the index of its class.
        class_ids: the classes.
        problems: a line for each kind of entry or image that was left out.
    """

    items: list[tuple[Path, int]]
    class_ids: tuple[str, ...]
    problems: tuple[str, ...]


def find_list(root: Path, place: Path, split: Split) -> Path | None:
    """The list of a split's images, if there is one; ImageNet's own, of numbers or wnids alone, are none of these.

    Args:
        root: the data set's folder.
        place: the folder of the split's images, which may be the same.
        split: a split without a list of its own has the one of all images, or the training images' list.
    """
    own = _first(root, place, _STEMS[split])
    if split == "val" and own is not None:
        return None if _is_imagenet(own) and _first(root, place, _STEMS["train"]) is None else own
    return own or _first(root, place, _SHARED_STEMS) or _first(root, place, _STEMS["train"])


def has_validation_list(root: Path) -> bool:
    """Whether a folder has a list of images to measure on, and another of those to train on."""
    return all(_first(root, root, _STEMS[split]) is not None for split in _STEMS)


def known_classes(root: Path, place: Path) -> tuple[str, ...]:
    """The classes that one of `CLASS_FILES` names; none without such a file.

    Raises:
        XCiTError: if one is named twice.
    """
    path = next((path for folder in (place, root) for name in CLASS_FILES if (path := folder / name).is_file()), None)
    if path is None:
        return ()
    names = parse_class_names(_text(path))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise XCiTError(f"{path}: the class {twice!r} is there twice")
    return names


def read_list(path: Path, place: Path, classes: Sequence[str]) -> ListedImages:
    """Reads a list: two columns, or columns that are named for the file and the class among others.

    Files may be named without their suffixes or folders, where that is not ambiguous. Classes are names or numbers;
    numbers are lines of `classes`, from 0, where there are such.

    Args:
        path: a CSV with or without a first line that names the columns, or lines of name, white space and class.
        place: where the images are.
        classes: their order; none is the order of the alphabet, or of numbers.

    Raises:
        XCiTError: if a line or a class is wrong, it is not clear which columns are meant, or no image is there.
    """
    found = images_below(place)
    image_of = _by_name(found, place)
    rows = list(_rows(path, image_of))
    names = tuple(classes) or _ordered({label for _, _, label in rows})
    index_of = {name: index for index, name in enumerate(names)}
    items: dict[Path, int] = {}
    absent = list[str]()
    for number, name, label in rows:
        index = index_of.get(label)
        if index is None and classes and is_number(label) and int(label) < len(classes):
            index = int(label)
        if index is None:
            raise XCiTError(f"{path}, line {number}: {label!r} is none of the {len(names)} classes")
        image = image_of.get(_key(name))
        if image is None:
            absent.append(name)
        elif items.setdefault(image, index) != index:
            raise XCiTError(
                f"{path}, line {number}: {name} was said to be {names[items[image]]!r} before, now {label!r}"
            )
    if not items:
        raise XCiTError(f"{path}: none of its {len(rows)} images is in {place}; the first: {absent[0]}")
    problems = [
        f"{path}: {len(left_out)} {what}: {some_of(left_out)}"
        for what, left_out in (
            (f"entries left out, for there is no one image of that name in {place}", absent),
            (f"images of {place} left out, for it does not list them", [p.name for p in found if p not in items]),
        )
        if left_out
    ]
    return ListedImages(list(items.items()), names, tuple(problems))


def _first(root: Path, place: Path, stems: Sequence[str]) -> Path | None:
    # The images' own folder first: it may be a split's.
    folders = dict.fromkeys([place, *(root / name for name in _FOLDERS)])
    places = (folder / f"{stem}{suffix}" for folder in folders for stem in stems for suffix in _SUFFIXES)
    return next((path for path in places if path.is_file()), None)


def _is_imagenet(path: Path) -> bool:
    """Whether the first line's class is one of ImageNet's, by its number or wnid."""
    words = next((line.replace(",", " ").split() for line in _text(path).splitlines() if line.strip()), [])
    return len(words) < 2 or is_number(words[1]) or _WNID.fullmatch(words[1]) is not None


def _rows(path: Path, image_of: Mapping[str, Path | None]) -> Iterator[tuple[int, str, str]]:
    """Line number, file and class of each entry."""
    lines = [(number, line) for number, line in enumerate(_text(path).splitlines(), start=1) if line.strip()]
    if not lines:
        raise XCiTError(f"{path}: an empty list")
    cells = [(number, [cell.strip() for cell in row]) for number, row in _split(path, lines)]
    number, head = cells[0]
    # A first line that names no image names the columns.
    has_head = _key(head[0]) not in image_of and Path(head[0]).suffix.lower() not in IMAGE_SUFFIXES
    columns = _columns(path, head) if has_head else (0, 1)
    for number, row in cells[1:] if has_head else cells:
        if len(row) <= max(columns) or (not has_head and len(row) != 2):
            raise XCiTError(f"{path}, line {number}: {','.join(row)!r} is no file and class")
        name, label = row[columns[0]], row[columns[1]]
        if not name or not label:
            raise XCiTError(f"{path}, line {number}: {','.join(row)!r} has no file or no class")
        yield number, name, label


def _split(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    first = lines[0][1]
    separator = next((mark for mark in "\t,;" if mark in first), "")
    if path.suffix == ".csv" and not separator:
        raise XCiTError(f"{path}: its first line {first!r} has one column: expected a file and a class")
    for number, line in lines:
        if separator:
            yield number, next(csv.reader([line], delimiter=separator))
        else:
            yield number, line.rsplit(None, 1)


def _columns(path: Path, head: Sequence[str]) -> tuple[int, int]:
    """Which columns are the file and the class."""
    names = [name.casefold() for name in head]
    file = next((names.index(name) for name in _FILE_COLUMNS if name in names), None)
    label = next((names.index(name) for name in _LABEL_COLUMNS if name in names), None)
    if len(names) == 2:  # whatever they are called
        return (1, 0) if file == 1 or (label == 0 and file is None) else (0, 1)
    if file is None or label is None:
        raise XCiTError(
            f"{path}: which of its columns {', '.join(head[:8])} are the file and the class? call them file and label"
        )
    return file, label


def _by_name(images: Sequence[Path], place: Path) -> dict[str, Path | None]:
    """Images by path below their folder, by name, and both without suffix; none where two have the same."""
    found: dict[str, Path | None] = {}
    for image in images:
        below = image.relative_to(place)
        keys = {below.as_posix(), image.name, below.with_suffix("").as_posix(), image.stem}
        keys.add(f"{place.name}/{below.as_posix()}")
        for key in keys:
            found[key] = None if key in found else image
    for image in images:  # a whole path is meant before any name
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
