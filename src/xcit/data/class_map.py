"""Reads class maps. A class map is a file that maps the folder names or the labels of a data set to classes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xcit.data.classification import ImageFiles, LabelledImages, with_classes
from xcit.data.label_lists import split_lines
from xcit.data.splits import is_number
from xcit.errors import XCiTError
from xcit.regular import regular

_HEADS = (
    frozenset({"name", "folder", "label", "class", "id", "wnid", "from", "data"}),
    frozenset({"class", "class_name", "index", "label", "model", "name", "number", "target", "to"}),
)
"""Accepted names of the first column and of the second column. If the first line has two such names, it is a header."""

_SHOWN = 3


@dataclass(frozen=True)
class ClassMap:
    """A map from the names in a data set to classes. The names are folder names or labels.

    Attributes:
        source: path of the class map file.
        class_of: maps each name in the data set to a class: a class name, or a class index written as text ("7").
    """

    source: str
    class_of: Mapping[str, str]

    def apply(self, images: LabelledImages) -> LabelledImages:
        """Returns the images with the classes of the class map. Several names in the data set may have the same class.

        The result contains only classes that have images. These classes are in the order of the class map, or in
        numerical order if all class names are numbers.

        Raises:
            XCiTError: if a name in the data set is missing in the class map.
        """
        absent = [name for name in images.class_ids if name not in self.class_of]
        if absent:
            raise XCiTError(
                f"{self.source}: {len(absent)} of the {len(images.class_ids)} classes in the data are missing in this "
                f"file: {', '.join(map(repr, absent[:_SHOWN]))}{', ...' if len(absent) > _SHOWN else ''}"
            )
        meant = [self.class_of[name] for name in images.class_ids]
        found = set(meant)
        ordered = [name for name in dict.fromkeys(self.class_of.values()) if name in found]
        if all(map(is_number, ordered)):
            ordered.sort(key=int)
        index_of = {name: index for index, name in enumerate(ordered)}
        mapped = with_classes(images, ordered, [index_of[name] for name in meant])
        if isinstance(mapped, ImageFiles):
            mapped = replace(mapped, source=f"{mapped.source}, classes by {self.source}")
        return mapped


def read_class_map(path: str | os.PathLike[str]) -> ClassMap:
    """Reads a class map.

    Args:
        path: a JSON file or a text file. A JSON file has an object that maps each name in the data set to the name or
            the index of a class. In a text file, each line has a name in the data set and its class, separated by a
            tab, a comma, a semicolon or spaces. A first line such as `folder,class` is a header.

    Raises:
        XCiTError: if the file can't be read or is empty, a line or a value is invalid, or a name has two classes.
    """
    path = Path(path)
    try:
        text = regular(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise XCiTError(f"{path}: the class map can't be read: {getattr(error, 'strerror', '') or error}") from None
    pairs = _of_json(path, text) if path.suffix.lower() == ".json" else _of_lines(path, text)
    found: dict[str, str] = {}
    for place, name, meant in pairs:
        meant = str(int(meant)) if is_number(meant) else meant
        if not name or not meant:
            raise XCiTError(f"{path}{place}: a name or its class is missing")
        if found.setdefault(name, meant) != meant:
            raise XCiTError(f"{path}{place}: {name!r} has two classes: {found[name]!r} and {meant!r}")
    if not found:
        raise XCiTError(f"{path}: an empty class map")
    return ClassMap(str(path), found)


def numbered(images: LabelledImages, num_classes: int, where: str) -> LabelledImages:
    """Uses the class names as labels if all class names are numbers; otherwise, returns the images unchanged.

    Args:
        images: images to which a class map was applied.
        num_classes: number of classes of the model. If 0, the largest class number plus one is used.
        where: path of the class map; error messages begin with this path.

    Raises:
        XCiTError: if a class number is too large for the number of classes.
    """
    if not all(map(is_number, images.class_ids)):
        return images
    labels = [int(name) for name in images.class_ids]
    count = num_classes or max(labels) + 1
    if max(labels) >= count:
        raise XCiTError(f"{where}: class {max(labels)} does not exist: the model's {count} classes are numbered from 0")
    return with_classes(images, tuple(map(str, range(count))), labels)


def _of_json(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise XCiTError(f"{path}: a class map must be a JSON object that maps names in the data to classes")
    for name, meant in content.items():
        if isinstance(meant, bool) or not isinstance(meant, int | str):
            raise XCiTError(f"{path}: the class of {name!r} must be a name or an index")
        yield "", name.strip(), str(meant).strip() if isinstance(meant, str) or 0 <= meant < 10**6 else ""


def _of_lines(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        return
    rows = [(number, [cell.strip() for cell in row]) for number, row in split_lines(path, lines)]
    for number, row in rows[1:] if _is_head(rows[0][1]) else rows:
        if len(row) != 2:
            raise XCiTError(f"{path}, line {number}: {','.join(row)!r} must be a name and a class")
        yield f", line {number}", row[0], row[1]


def _is_head(row: Sequence[str]) -> bool:
    return len(row) == 2 and all(cell.casefold() in words for cell, words in zip(row, _HEADS, strict=True))
