"""COCO-format data as people have them on disk: a JSON file of images, categories and objects, and a folder of images.

What is wrong with single entries is named and counted, and costs no other entry.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.data.coco_masks import CocoMask, box_polygon, decode_mask, mask_area, mask_problem
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
        segmentation: polygons or RLE, checked; the box's outline where the file has none.
        area: in pixels, by which objects are counted as small, medium or large.
        is_crowd: a group of objects: not trained on, and no mistake to find.
        is_trainable: whether its box has an area within the image.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: CocoMask
    area: float
    is_crowd: bool
    is_trainable: bool


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id in the file, its own file, height and width, and what is in it."""

    id: int
    path: Path
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]


@dataclass
class Problems:
    """Entries that are not as they should be, by kind."""

    by_kind: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        """Notes an entry of a kind, which ends a sentence that begins with a number."""
        self.by_kind.setdefault(kind, []).append(what)

    def lines(self) -> list[str]:
        """A line a kind: how many, and the first of them."""
        return [
            f"{len(entries)} {kind}: {'; '.join(entries[:_SHOWN])}{'; ...' if len(entries) > _SHOWN else ''}"
            for kind, entries in self.by_kind.items()
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

    images: tuple[CocoImage, ...]
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
    content = _read_json(source)
    problems = Problems()
    names, index_of = _categories(content, source)
    entries = _image_entries(content, problems)
    folder = _image_folder(Path(data), source, split, entries)
    objects = _objects(content, entries, index_of, problems)
    images = []
    existing = _Existing()
    for number, entry in entries.items():
        path = folder / entry["file_name"]
        if path not in existing:
            problems.add("images left out, for there is no such file", str(path))
            continue
        images.append(CocoImage(number, path, (entry["height"], entry["width"]), tuple(objects.get(number, ()))))
    if not images:
        raise XCiTError(
            f"{source}: none of its {len(entries)} images is in {folder} or another place where they may be"
        )
    return CocoImages(tuple(images), names, tuple(index_of), tuple(problems.lines()), source)


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


def _read_json(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_bytes())
    except OSError as error:
        raise XCiTError(f"{source}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise XCiTError(f"{source}: not a JSON file: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise XCiTError(f"{source}: not in COCO's format: it needs lists of 'images' and 'categories'")
    if not isinstance(content.setdefault("annotations", []), list):
        raise XCiTError(f"{source}: not in COCO's format: 'annotations' is no list")
    return content


def _categories(content: Mapping[str, Any], source: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in the file's order, and the label of each category id."""
    names, index_of = list[str](), dict[int, int]()
    for entry in content["categories"]:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise XCiTError(f"{source}: a category needs a whole number as 'id' and a 'name': {_brief(entry)}")
        if entry["id"] in index_of:
            raise XCiTError(f"{source}: two categories have the id {entry['id']}")
        index_of[entry["id"]] = len(names)
        names.append(entry["name"])
    if not names:
        raise XCiTError(f"{source}: it has no categories")
    return tuple(names), index_of


def _image_entries(content: Mapping[str, Any], problems: Problems) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for entry in content["images"]:
        sizes = [entry.get(key) for key in ("height", "width")] if isinstance(entry, dict) else [None]
        if (
            not all(type(length) is int and length > 0 for length in sizes)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("file_name"), str)
        ):
            problems.add("images left out, for they lack id, file_name, height or width", _brief(entry))
        elif entry["id"] in entries:
            problems.add("images left out, for another has their id", f"{entry['file_name']} (id {entry['id']})")
        else:
            entries[entry["id"]] = entry
    return entries


def _image_folder(data: Path, source: Path, split: Split, entries: Mapping[int, Mapping[str, Any]]) -> Path:
    """The first place where one of the first images is; where none is, the first place that exists."""
    roots = [data] if data.is_dir() else [source.parent, source.parent.parent]
    # The images of `val.json` are in `val`, whichever split is asked for.
    own = [source.parent / source.stem] if data.is_file() else [source.parent]
    splits = [name for name in ("train", "val", "test") if name in source.stem] if data.is_file() else []
    places = [
        *own,
        *(root / place.format(split=name) for name in splits or [split] for root in roots for place in _IMAGE_FOLDERS),
    ]
    first = [entry["file_name"] for entry in list(entries.values())[:20]]
    for place in places:
        if any((place / name).is_file() for name in first):
            return place
    return next((place for place in places[1:] if place.is_dir()), source.parent)


def _objects(
    content: Mapping[str, Any],
    entries: Mapping[int, Mapping[str, Any]],
    index_of: Mapping[int, int],
    problems: Problems,
) -> dict[int, list[CocoObject]]:
    """The objects of each image that can be understood."""
    objects: dict[int, list[CocoObject]] = {}
    for place, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            problems.add("annotations left out, for they are no objects of fields", f"number {place + 1}")
            continue
        what = f"annotation {entry.get('id', f'number {place + 1}')}"
        image = entries.get(_hashable(entry.get("image_id")))
        if image is None:
            problems.add("annotations left out, for no image has their image_id", f"{what}: {entry.get('image_id')!r}")
            continue
        what += f" of {image['file_name']}"
        label = index_of.get(_hashable(entry.get("category_id")))
        if label is None:
            problems.add(
                "annotations left out, for no category has their category_id", f"{what}: {entry.get('category_id')!r}"
            )
            continue
        found = _object(entry, label, (image["height"], image["width"]), what, problems)
        if found is not None:
            objects.setdefault(image["id"], []).append(found)
    return objects


def _object(
    entry: Mapping[str, Any], label: int, size: tuple[int, int], what: str, problems: Problems
) -> CocoObject | None:
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
    return CocoObject(
        label=label,
        box=(x, y, width, height),
        segmentation=segmentation,
        area=area[0] if area else mask_area(segmentation, size),
        is_crowd=is_crowd,
        is_trainable=has_area and is_inside and not is_crowd and not (area and area[0] <= 0),
    )


class _Existing:
    """The files of folders, each folder read once: faster than to ask for each of a hundred thousand files."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        if path.parent not in self._names:
            self._names[path.parent] = frozenset(_names(path.parent))
        return path.name in self._names[path.parent]


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file())
    except OSError:
        return


def _numbers(values: object) -> tuple[float, ...]:
    """Finite numbers of a list; none if one is not."""
    if not isinstance(values, list):
        return ()
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return ()
    return tuple(float(value) for value in values)


def _hashable(value: object) -> int:
    return value if type(value) is int else -1


def _brief(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
