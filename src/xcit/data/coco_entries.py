"""Reads and checks the entries of a COCO-format file one by one; invalid entries are left out and counted."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcit.data.coco_masks import FARTHEST, box_polygon, mask_area, mask_problem
from xcit.data.coco_places import names_in
from xcit.data.coco_table import add_text, name_in
from xcit.data.json_lists import json_lists
from xcit.errors import XCiTError
from xcit.images.read import image_size

_FIRST_TEXT_ID = -(2**62)
"""The first id that is text is replaced by this number. For each further id that is text, the number is lower by 1."""
_GREATEST = 2.0**53
"""The largest accepted absolute value of a coordinate, a length or an area, in pixels."""

_SHOWN = 3
"""Number of example entries in the message about one kind of problem."""


class Problems:
    """The problems in a file: for each kind of problem, the number of entries and the first few entries."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.first: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        """Adds an entry with a problem.

        Args:
            kind: the kind of problem, in words that can follow a number, such as "images left out".
            what: description of the entry.
        """
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN:
            self.first.setdefault(kind, []).append(what)

    def lines(self) -> list[str]:
        """Returns one message per kind of problem."""
        return [
            f"{self.counts[kind]} {kind}: {'; '.join(first)}{'; ...' if self.counts[kind] > _SHOWN else ''}"
            for kind, first in self.first.items()
        ]


class Ids:
    """A converter of ids to numbers.

    An integer is the same id in every form: 7, 7.0 and "7" all become 7. Each text that is not an integer gets a number
    of its own.
    """

    def __init__(self) -> None:
        self._of_text: dict[str, int] = {}

    def number(self, value: object) -> int | None:
        """Returns the number for an id; None if the value can't be an id."""
        if isinstance(value, str):
            try:
                if value.isascii() and len(value) < 19 and str(int(value)) == value:
                    return int(value)
            except ValueError:
                pass
            return self._of_text.setdefault(value, _FIRST_TEXT_ID - len(self._of_text))
        whole = _whole(value)
        return whole if _is_int64(whole) else None


def as_numbers(category_ids: Iterable[int]) -> tuple[int, ...]:
    """Replaces the numbers of text ids (`_FIRST_TEXT_ID` and below) by the smallest unused numbers from 1."""
    given = [number for number in category_ids if number > _FIRST_TEXT_ID]
    free = (number for number in itertools.count(1) if number not in given)
    return tuple(number if number > _FIRST_TEXT_ID else next(free) for number in category_ids)


def read_images(
    source: Path, texts: bytearray, categories: list[Any], problems: Problems, ids: Ids
) -> Iterator[tuple[Any, ...]]:
    """Yields the images as rows of `IMAGE`. The field `objects` of each row is (0, 0), and is set later.

    The function appends the file names to `texts`, and the entries of the list 'categories' to `categories`. If an
    image has no height or width in the file, 0 is used.

    Raises:
        XCiTError: if the file can't be read, or is not in COCO's format.
    """
    seen, kinds = set[int](), dict[str, type]()
    for key, text, entry in json_lists(source):
        if text is None:
            kinds[key] = type(entry)
        elif key == "categories":
            categories.append(entry)
        elif key == "images":
            fields = entry if isinstance(entry, dict) else {}
            sizes = [0 if fields.get(side) is None else _whole(fields[side]) for side in ("height", "width")]
            number, name = ids.number(fields.get("id")), fields.get("file_name")
            if number is None or not isinstance(name, str) or not name:
                problems.add("images left out, because they have no id or no file_name", _brief(entry))
            elif not all(_is_int64(length) and length >= 0 for length in sizes):
                problems.add("images left out, because height or width is not a number of pixels", _brief(entry))
            elif max(sizes) > FARTHEST or sizes[0] * sizes[1] >= 2**31:
                problems.add("images left out, because they are too large", f"{name}: {sizes}")
            elif number in seen:
                problems.add("images left out, because another image has the same id", f"{name} (id {fields['id']})")
            else:
                seen.add(number)
                yield number, sizes, add_text(texts, _place_of_file(name)), (0, 0)
    if not all(kinds.get(key) is list for key in ("images", "categories")):
        raise XCiTError(f"{source}: not in COCO's format: it must have the lists 'images' and 'categories'")
    if kinds.get("annotations", list) is not list:
        raise XCiTError(f"{source}: not in COCO's format: 'annotations' is not a list")


def _place_of_file(name: str) -> str:
    r"""Returns a file name with / between folders. In a name without /, each \ is replaced by /."""
    return name if "/" in name else name.replace("\\", "/")


def read_categories(entries: Sequence[Any], source: Path, ids: Ids) -> tuple[tuple[str, ...], dict[int, int]]:
    """Returns the class names in the order of the file, and a dict from each category id to its label.

    Raises:
        XCiTError: if there are no categories, a category has no id or no name, or two categories have the same id.
    """
    names, index_of = list[str](), dict[int, int]()
    for entry in entries:
        number = ids.number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str):
            raise XCiTError(f"{source}: a category needs an 'id' and a 'name': {_brief(entry)}")
        if number in index_of:
            raise XCiTError(f"{source}: two categories have the id {entry['id']}")
        index_of[number] = len(names)
        names.append(entry["name"])
    if not names:
        raise XCiTError(f"{source}: it has no categories")
    return tuple(names), index_of


def unused_parent(categories: Sequence[Any], index_of: Mapping[int, int], ids: Ids) -> int | None:
    """Returns the label of the first category if this category has the id 0 and is the supercategory of all others.

    Otherwise, returns None.
    """
    first = categories[0]
    parents = {str(entry.get("supercategory")) for entry in categories[1:]}
    if len(categories) > 1 and ids.number(first["id"]) == 0 and parents == {first["name"]}:
        return index_of[0]
    return None


def find_files(
    rows: NDArray[np.void], texts: bytearray, folder: Path, problems: Problems, *, ignore_exif: bool
) -> NDArray[np.bool_]:
    """Finds the image files. Returns for each image whether its file was found, as bool (number of images,).

    If there is no file with the whole name, the name without its folders is tried. The names in `rows` are replaced by
    the names of the files that were found. Sizes that are 0 are replaced by the sizes of the image files.
    """
    files_in, is_there = cache(names_in), np.ones(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        name = name_in(texts, row)
        path = folder / name
        if path.name not in files_in(path.parent):
            bare = folder / path.name
            if bare.name not in files_in(folder):
                problems.add("images left out, because the file does not exist", str(path))
                is_there[index] = False
                continue
            path = bare
            rows[index]["name"] = add_text(texts, path.name)
        if not row["size"].all():
            try:
                rows[index]["size"] = image_size(path, ignore_exif=ignore_exif)[::-1]
            except XCiTError as error:
                problems.add("images left out, because neither the JSON nor the image file gives a size", str(error))
                is_there[index] = False
    return is_there


def read_objects(
    source: Path,
    images: NDArray[np.void],
    is_there: NDArray[np.bool_],
    index_of: Mapping[int, int],
    texts: bytearray,
    problems: Problems,
    ids: Ids,
) -> Iterator[tuple[Any, ...]]:
    """Yields the valid objects as rows of `OBJECT`; the JSON texts of their masks are appended to `texts`.

    `is_there` is the result of `find_files`: objects of images without files are left out.
    """
    place_of = {number: place for place, number in enumerate(images["id"].tolist())}
    annotations = (
        (text, entry) for key, text, entry in json_lists(source) if key == "annotations" and text is not None
    )
    for number, (text, entry) in enumerate(annotations, start=1):
        if not isinstance(entry, dict):
            problems.add("annotations left out, because they are not JSON objects", f"number {number}")
            continue
        what = f"annotation {_brief(entry['id']) if 'id' in entry else f'number {number}'}"
        place = place_of.get(_known(ids.number(entry.get("image_id"))))
        if place is None:
            problems.add(
                "annotations left out, because no image has their image_id", f"{what}: {_brief(entry.get('image_id'))}"
            )
            continue
        what += f" of {name_in(texts, images[place])}"
        if not is_there[place]:
            problems.add("annotations left out, because their image is left out", what)
            continue
        label = index_of.get(_known(ids.number(entry.get("category_id"))))
        if label is None:
            problems.add(
                "annotations left out, because no category has their category_id",
                f"{what}: {_brief(entry.get('category_id'))}",
            )
            continue
        height, width = images[place]["size"].tolist()
        segmentation = _good_part(entry.get("segmentation"), what, problems)
        if segmentation is not entry.get("segmentation"):
            entry = {**entry, "segmentation": segmentation}
            text = json.dumps({"segmentation": segmentation})
        found = _object(entry, (height, width), what, problems)
        if found is not None:
            yield place, label, *found, add_text(texts, text if segmentation else "")


def _good_part(segmentation: Any, what: str, problems: Problems) -> Any:
    """Removes the invalid polygons of a mask if at least one polygon is valid; otherwise returns the mask unchanged.

    If the mask is a list of numbers instead of a list of polygons, it is treated as one polygon and put into a list.
    """
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation
    if not mask_problem([segmentation], (1, 1)):
        return [segmentation]
    good = [polygon for polygon in segmentation if not mask_problem([polygon], (1, 1))]
    if not good or len(good) == len(segmentation):
        return segmentation
    bad = len(segmentation) - len(good)
    problems.add("masks used without their invalid polygons", f"{what}: {bad} of {len(segmentation)}")
    return good


def _object(
    entry: Mapping[str, Any], size: tuple[int, int], what: str, problems: Problems
) -> tuple[tuple[float, ...], float, bool, bool] | None:
    """Returns the box, the area, `is_crowd` and `is_trainable` of an object; None if the object is invalid."""
    box = _numbers(entry.get("bbox"))
    if len(box) != 4:
        problems.add(
            "annotations left out, because bbox is not four finite numbers", f"{what}: {_brief(entry.get('bbox'))}"
        )
        return None
    segmentation = entry.get("segmentation")
    is_crowd = bool(entry.get("iscrowd", 0))
    if segmentation is None or segmentation == []:
        problems.add("objects have no mask: their box is used as the mask", what)
        segmentation = box_polygon(box)
    elif problem := mask_problem(segmentation, size):
        problems.add("annotations left out, because their mask is invalid", f"{what}: {problem}")
        return None
    x, y, width, height = box
    # As in the published code, boxes with a side shorter than one pixel are not trained on.
    has_area = width >= 1 and height >= 1
    is_inside = min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)
    if not has_area:
        problems.add(
            "objects are not trained on, because a side of their box is shorter than a pixel", f"{what}: {list(box)}"
        )
    elif not is_inside:
        problems.add(
            "objects are not trained on, because their box is outside the image",
            f"{what}: {list(box)} in {size[1]} x {size[0]} pixels",
        )
    area = _numbers([entry["area"]]) if "area" in entry else ()
    is_trainable = has_area and is_inside and not is_crowd and not (area and area[0] <= 0)
    return box, area[0] if area else mask_area(segmentation, size), is_crowd, is_trainable


def _numbers(values: object) -> tuple[float, ...]:
    """Converts a list of numbers to floats; returns an empty tuple if `values` is not a list of finite numbers."""
    if not isinstance(values, list):
        return ()
    # The comparison also excludes NaN and infinity. `math.isfinite` raises an error for integers that are too large
    # for a float.
    if not all(isinstance(value, int | float) and -_GREATEST <= value <= _GREATEST for value in values):
        return ()
    return tuple(float(value) for value in values)


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _whole(value: object) -> Any:
    """Returns an int for an integer that is written as a float or as text; any other value is returned unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    return value


def _known(number: int | None) -> int:
    return _FIRST_TEXT_ID + 1 if number is None else number


def _brief(value: object) -> str:
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        return "(lists nested too deeply to show)"
    return text if len(text) <= 60 else f"{text[:57]}..."
