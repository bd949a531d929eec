"""COCO-format data as people have them on disk: a JSON file of images, categories and objects, and a folder of images.

What is wrong with single entries is named and counted, and costs no other entry.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.data.coco_masks import CocoMask, box_polygon, decode_mask, mask_area, mask_problem
from xcit.data.json_lists import json_lists
from xcit.data.named import Split
from xcit.errors import XCiTError
from xcit.images.read import read_image

_ANNOTATION_FILES = (
    "annotations/instances_{split}2017.json",
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
"""Where the JSON file of a split is looked for in a folder, in this order."""

_IMAGE_FOLDERS = ("{split}2017", "{split}", "images/{split}2017", "images/{split}", "images", ".")
"""Where the images of a split are looked for, likewise, below the folder and below those above a JSON file."""

_SHOWN = 3
"""Entries that a line about a kind of problem names."""


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One object of an image.

    Attributes:
        label: index of its category, from 0.
        box: x, y, width and height in pixels, as the file has it.
        area: in pixels, by which objects are counted as small, medium or large.
        is_crowd: a group of objects: not trained on, and no mistake to find.
        is_trainable: whether its box has an area within the image.
        entry: its JSON text in the file; empty where that has no mask.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    is_trainable: bool
    entry: bytes

    @property
    def segmentation(self) -> CocoMask:
        """Polygons or RLE, checked; the box's outline where the file has none. It is parsed at each call."""
        mask: CocoMask = json.loads(self.entry)["segmentation"] if self.entry else box_polygon(self.box)
        return mask


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id in the file, its own file, height and width, and what is in it."""

    id: int
    path: Path
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]


_IMAGE = np.dtype([("id", "i8"), ("size", "i8", 2), ("name", "i8", 2), ("objects", "i8", 2)])
_OBJECT = np.dtype("i8, i8, (4,)f8, f8, ?, ?, (2,)i8")
_OBJECT.names = ("image", "label", "box", "area", "is_crowd", "is_trainable", "entry")


@dataclass(frozen=True, eq=False)
class CocoTable(Sequence[CocoImage]):
    """The images of a file and their objects, without a Python object for each.

    Processes that were forked share these arrays, for nobody writes to them, not even a count of references.

    Attributes:
        folder: where the images' files are.
        rows: of n images: id, height and width, where in `texts` the name of its file begins and ends, and where in
            `objects` its own do.
        objects: of all images in their order: the fields of `CocoObject`, `entry` as its place in `texts`.
        texts: uint8, names of files and JSON texts in UTF-8.
    """

    folder: Path
    rows: NDArray[np.void]
    objects: NDArray[np.void]
    texts: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        number, size, (start, end), (first, last) = self.rows[range(len(self))[index]].tolist()
        path = self.folder / self.texts[start:end].tobytes().decode(errors="surrogatepass")
        return CocoImage(
            number, path, tuple(size.tolist()), tuple(map(self._object, self.objects[first:last].tolist()))
        )

    def num_trainable(self) -> NDArray[np.int64]:
        """Of each image, how many objects are trained on."""
        sums = np.concatenate([[0], np.cumsum(self.objects["is_trainable"])])
        return np.diff(sums[self.rows["objects"]])[:, 0]

    def _object(self, fields: Any) -> CocoObject:
        _, label, box, area, is_crowd, is_trainable, (start, end) = fields
        return CocoObject(label, tuple(box.tolist()), area, is_crowd, is_trainable, self.texts[start:end].tobytes())


class Problems:
    """Entries that are not as they should be, by kind: how many, and the first of them."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.first: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        """Notes an entry of a kind, which ends a sentence that begins with a number."""
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN:
            self.first.setdefault(kind, []).append(what)

    def lines(self) -> list[str]:
        """A line a kind."""
        return [
            f"{self.counts[kind]} {kind}: {'; '.join(first)}{'; ...' if self.counts[kind] > _SHOWN else ''}"
            for kind, first in self.first.items()
        ]


@dataclass(frozen=True)
class CocoImages:
    """A split of a COCO-format data set.

    Attributes:
        images: in the file's order, those whose files exist.
        class_names: of the labels from 0 on, in the file's order.
        category_ids: likewise, the ids that the file gives them.
        problems: a line a kind of entry that is not as it should be.
        source: the JSON file.
    """

    images: CocoTable
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: tuple[str, ...]
    source: Path

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Image.Image:
        """The picture, RGB.

        Raises:
            XCiTError: "<path>: <reason>" if it can't be read, or has another size than the file says.
        """
        image = self.images[index]
        picture = read_image(image.path)
        if (picture.height, picture.width) != image.size:
            height, width = image.size
            raise XCiTError(
                f"{image.path}: the picture is {picture.width} x {picture.height} pixels, but {width} x {height} in "
                f"{self.source}: its objects can't be where they are said to be"
            )
        return picture

    def masks(self, index: int, objects: Sequence[CocoObject]) -> np.ndarray:
        """Masks (n, height, width) uint8, 0 or 1, of objects of an image."""
        size = self.images[index].size
        masks = [decode_mask(one.segmentation, size) for one in objects]
        return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)


def open_coco(data: str | os.PathLike[str], split: Split) -> CocoImages:
    """Opens one split of a COCO-format data set.

    Args:
        data: a folder with `annotations/instances_<split>2017.json` and `<split>2017/` in it, as COCO is distributed,
            or `annotations/<split>.json` and `<split>/`, or `<split>/_annotations.coco.json`; or a JSON file, which
            then serves as either split.
        split: "val" is what a model is measured on.

    Raises:
        XCiTError: if there is no such file, it is no COCO-format JSON, or none of its images exists.
    """
    source = _annotation_file(Path(data), split)
    problems, texts, categories = Problems(), bytearray(), list[Any]()
    rows = np.fromiter(_images(source, texts, categories, problems), _IMAGE)
    names, index_of = _categories(categories, source)
    folder = _image_folder(Path(data), source, split, [_name(texts, row) for row in rows[:20]])
    objects = np.fromiter(_objects(source, rows, index_of, texts, problems), _OBJECT)
    objects = objects[np.argsort(objects["image"], kind="stable")]
    rows["objects"] = np.searchsorted(objects["image"], np.arange(len(rows))[:, None] + [0, 1])
    names_in, is_there = cache(_names_in), np.ones(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        path = folder / _name(texts, row)
        if path.name not in names_in(path.parent):
            problems.add("images left out, for there is no such file", str(path))
            is_there[index] = False
    if not is_there.any():
        raise XCiTError(f"{source}: none of its {len(rows)} images is in {folder} or another place where they may be")
    table = CocoTable(folder, rows[is_there], objects, np.frombuffer(texts, np.uint8))
    return CocoImages(table, names, tuple(index_of), tuple(problems.lines()), source)


def _annotation_file(data: Path, split: Split) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise XCiTError(f"{data}: no such folder or file; data is a folder in COCO's form, or a COCO-format JSON file")
    places = [data / place.format(split=split) for place in _ANNOTATION_FILES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise XCiTError(f"{data}: no annotations of the split {split!r}: expected {places[0]}, or {places[2]}")
    return found


def _images(source: Path, texts: bytearray, categories: list[Any], problems: Problems) -> Iterator[tuple[Any, ...]]:
    """The images, without their objects; their names are added to `texts`, and to `categories` their entries."""
    ids, kinds = set[int](), dict[str, type]()
    for key, text, entry in json_lists(source):
        if text is None:
            kinds[key] = type(entry)
        elif key == "categories":
            categories.append(entry)
        elif key == "images":
            sizes: list[Any] = [entry.get(side) for side in ("height", "width")] if isinstance(entry, dict) else [None]
            if (
                not all(_is_int64(length) and length > 0 for length in sizes)
                or not _is_int64(entry.get("id"))
                or not isinstance(entry.get("file_name"), str)
            ):
                problems.add("images left out, for they lack id, file_name, height or width", _brief(entry))
            elif entry["id"] in ids:
                problems.add("images left out, for another has their id", f"{entry['file_name']} (id {entry['id']})")
            else:
                ids.add(entry["id"])
                yield entry["id"], sizes, _added(texts, entry["file_name"]), (0, 0)
    if not all(kinds.get(key) is list for key in ("images", "categories")):
        raise XCiTError(f"{source}: not in COCO's format: it needs lists of 'images' and 'categories'")
    if kinds.get("annotations", list) is not list:
        raise XCiTError(f"{source}: not in COCO's format: 'annotations' is no list")


def _added(texts: bytearray, text: str) -> tuple[int, int]:
    """Adds a text, and says where it is."""
    start = len(texts)
    texts += text.encode(errors="surrogatepass")
    return start, len(texts)


def _name(texts: bytearray, image: np.void) -> str:
    start, end = image["name"]
    return texts[start:end].decode(errors="surrogatepass")


def _categories(entries: Sequence[Any], source: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in the file's order, and the label of each category id."""
    names, index_of = list[str](), dict[int, int]()
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise XCiTError(f"{source}: a category needs a whole number as 'id' and a 'name': {_brief(entry)}")
        if entry["id"] in index_of:
            raise XCiTError(f"{source}: two categories have the id {entry['id']}")
        index_of[entry["id"]] = len(names)
        names.append(entry["name"])
    if not names:
        raise XCiTError(f"{source}: it has no categories")
    return tuple(names), index_of


def _image_folder(data: Path, source: Path, split: Split, first: Sequence[str]) -> Path:
    """The first place where one of the first images, by name, is; where none is, the first place that exists."""
    roots = [data] if data.is_dir() else [source.parent, source.parent.parent]
    # The images of `val.json` are in `val`, whichever split is asked for.
    own = [source.parent / source.stem] if data.is_file() else [source.parent]
    splits = [name for name in ("train", "val", "test") if name in source.stem] if data.is_file() else []
    places = [
        *own,
        *(root / place.format(split=name) for name in splits or [split] for root in roots for place in _IMAGE_FOLDERS),
    ]
    for place in places:
        if any((place / name).is_file() for name in first):
            return place
    return next((place for place in places[1:] if place.is_dir()), source.parent)


def _objects(
    source: Path, images: NDArray[np.void], index_of: Mapping[int, int], texts: bytearray, problems: Problems
) -> Iterator[tuple[Any, ...]]:
    """The objects that can be understood; their entries are added to `texts`."""
    place_of = {number: place for place, number in enumerate(images["id"].tolist())}
    annotations = (
        (text, entry) for key, text, entry in json_lists(source) if key == "annotations" and text is not None
    )
    for number, (text, entry) in enumerate(annotations, start=1):
        if not isinstance(entry, dict):
            problems.add("annotations left out, for they are no objects of fields", f"number {number}")
            continue
        what = f"annotation {entry.get('id', f'number {number}')}"
        place = place_of.get(_hashable(entry.get("image_id")))
        if place is None:
            problems.add("annotations left out, for no image has their image_id", f"{what}: {entry.get('image_id')!r}")
            continue
        what += f" of {_name(texts, images[place])}"
        label = index_of.get(_hashable(entry.get("category_id")))
        if label is None:
            problems.add(
                "annotations left out, for no category has their category_id", f"{what}: {entry.get('category_id')!r}"
            )
            continue
        height, width = images[place]["size"].tolist()
        found = _object(entry, (height, width), what, problems)
        if found is not None:
            yield place, label, *found, _added(texts, text if entry.get("segmentation") else "")


def _object(
    entry: Mapping[str, Any], size: tuple[int, int], what: str, problems: Problems
) -> tuple[tuple[float, ...], float, bool, bool] | None:
    """Box, area, `is_crowd` and `is_trainable`."""
    box = _numbers(entry.get("bbox"))
    if len(box) != 4:
        problems.add(
            "annotations left out, for bbox is not four finite numbers", f"{what}: {_brief(entry.get('bbox'))}"
        )
        return None
    segmentation = entry.get("segmentation")
    is_crowd = bool(entry.get("iscrowd", 0))
    if segmentation is None or segmentation == []:
        problems.add("objects have no mask: their box is taken for it", what)
        segmentation = box_polygon(box)
    elif problem := mask_problem(segmentation, size):
        problems.add("annotations left out, for their mask is malformed", f"{what}: {problem}")
        return None
    x, y, width, height = box
    # As published: sides below a pixel are not trained on.
    has_area = width >= 1 and height >= 1
    is_inside = min(x + width, size[1]) > max(x, 0) and min(y + height, size[0]) > max(y, 0)
    if not has_area:
        problems.add("objects are not trained on, for their box has a side below a pixel", f"{what}: {list(box)}")
    elif not is_inside:
        problems.add(
            "objects are not trained on, for their box is outside the image",
            f"{what}: {list(box)} in {size[1]} x {size[0]} pixels",
        )
    area = _numbers([entry["area"]]) if "area" in entry else ()
    is_trainable = has_area and is_inside and not is_crowd and not (area and area[0] <= 0)
    return box, area[0] if area else mask_area(segmentation, size), is_crowd, is_trainable


def _names_in(folder: Path) -> frozenset[str]:
    """Names of the files in a folder; read once, that is faster than to ask for each of a hundred thousand files."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def _numbers(values: object) -> tuple[float, ...]:
    """Finite numbers of a list; none if one is not."""
    if not isinstance(values, list):
        return ()
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return ()
    return tuple(float(value) for value in values)


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _hashable(value: object) -> int:
    return value if type(value) is int else -1


def _brief(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
