"""COCO-format data as people have them on disk: a JSON file of images, categories and objects, and a folder of images.

What is wrong with single entries is named and counted, and costs no other entry.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.data.coco_masks import FARTHEST, CocoMask, box_polygon, decode_mask, mask_area, mask_problem
from xcit.data.json_lists import json_lists
from xcit.data.named import Split
from xcit.data.splits import SPLIT_NAMES, below_single_folders
from xcit.errors import XCiTError
from xcit.images.read import image_size, read_image
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
"""Where the JSON file of a split is looked for in a folder, in this order, in any case; Roboflow's among them."""

_ONLY_FILES = (
    "annotations/instances_default.json",
    "result.json",
    "_annotations.coco.json",
    "annotations.json",
    "instances.json",
)
"""What a file without a split is called: CVAT's, Label Studio's and others'. It serves as either split."""

_IMAGE_FOLDERS = ("{split}2017", "{split}", "images/{split}2017", "images/{split}", "images", ".", "images/default")
"""Where the images of a split are looked for, likewise, below the folder and below those above a JSON file."""

_FIRST_TEXT_ID = -(2**62)
"""Numbers from here on down stand for ids that are text."""
_GREATEST = 2.0**53
"""A number of pixels beyond which nothing is meant."""

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
        x, y, width, height = map(float, box)
        return CocoObject(label, (x, y, width, height), area, is_crowd, is_trainable, self.texts[start:end].tobytes())


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
        ignore_exif: whether pictures are read as they are stored, whatever their EXIF orientation.
    """

    images: CocoTable
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: tuple[str, ...]
    source: Path
    ignore_exif: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> str:
        """What was found, in a line."""
        names = ", ".join(self.class_names[:_SHOWN]) + (", ..." if len(self.class_names) > _SHOWN else "")
        return (
            f"{len(self.class_names)} classes: {names}; {len(self)} images and {len(self.images.objects)} objects in "
            f"{self.source}"
        )

    def read(self, index: int) -> Image.Image:
        """The picture, RGB.

        Raises:
            XCiTError: "<path>: <reason>" if it can't be read, or has another size than the file says.
        """
        image = self.images[index]
        picture = read_image(image.path, ignore_exif=self.ignore_exif)
        if (picture.height, picture.width) != image.size:
            height, width = image.size
            otherwise = image_size(image.path, ignore_exif=not self.ignore_exif) == (width, height)
            hint = f"; it is so with ignore_exif {str(not self.ignore_exif).lower()}" if otherwise else ""
            raise XCiTError(
                f"{image.path}: the picture is {picture.width} x {picture.height} pixels, but {width} x {height} in "
                f"{self.source}: its objects can't be where they are said to be{hint}"
            )
        return picture

    def masks(self, index: int, objects: Sequence[CocoObject]) -> np.ndarray:
        """Masks (n, height, width) uint8, 0 or 1, of objects of an image."""
        size = self.images[index].size
        masks = [decode_mask(one.segmentation, size) for one in objects]
        return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)


def open_coco(data: str | os.PathLike[str], split: Split, *, ignore_exif: bool = False) -> CocoImages:
    """Opens one split of a COCO-format data set.

    Args:
        data: a folder with `annotations/instances_<split>2017.json` and `<split>2017/` in it, as COCO is distributed,
            or `annotations/<split>.json` and `<split>/`, or `<split>/_annotations.coco.json` (Roboflow), with any of
            `SPLIT_NAMES`; or one file for all, as CVAT and Label Studio write it; or a JSON file. One file serves as
            either split.
        split: "val" is what a model is measured on.
        ignore_exif: whether boxes and masks were drawn on the pixels as they are stored, not as a viewer turns them.

    Raises:
        XCiTError: if there is no such file, it is no COCO-format JSON, or none of its images exists.
    """
    root = Path(data)
    source = _annotation_file(root, split)
    problems, texts, categories, ids = Problems(), bytearray(), list[Any](), _Ids()
    rows = np.fromiter(_images(source, texts, categories, problems, ids), _IMAGE)
    names, index_of = _categories(categories, source, ids)
    folder = _image_folder(root, source, split, [_name(texts, row) for row in rows[:20]])
    is_there = _find_files(rows, texts, folder, problems, ignore_exif=ignore_exif)
    if not is_there.any():
        reasons = "".join(f"\n  {line}" for line in problems.lines()[:2])
        raise XCiTError(
            f"{source}: none of its {len(rows)} images is in {folder} or another place where they may be{reasons}"
        )
    objects = np.fromiter(_objects(source, rows, is_there, index_of, texts, problems, ids), _OBJECT)
    objects = objects[np.argsort(objects["image"], kind="stable")]
    rows["objects"] = np.searchsorted(objects["image"], np.arange(len(rows))[:, None] + [0, 1])
    if (place := _unused_parent(categories, index_of, ids)) is not None and not (objects["label"] == place).any():
        # Roboflow's: the name of the project, of which no object is.
        objects["label"] -= objects["label"] > place
        names = names[:place] + names[place + 1 :]
        index_of = {number: index for number, index in index_of.items() if index != place}
    table = CocoTable(folder, rows[is_there], objects, np.frombuffer(texts, np.uint8))
    return CocoImages(table, names, _as_numbers(index_of), tuple(problems.lines()), source, ignore_exif)


def _as_numbers(category_ids: Iterable[int]) -> tuple[int, ...]:
    """The ids with small numbers that are free for those that are text."""
    given = [number for number in category_ids if number > _FIRST_TEXT_ID]
    free = (number for number in itertools.count(1) if number not in given)
    return tuple(number if number > _FIRST_TEXT_ID else next(free) for number in category_ids)


class _Ids:
    """Ids of any kind as numbers: 7, 7.0 and "7" are one, and any other text gets a number of its own."""

    def __init__(self) -> None:
        self._of_text: dict[str, int] = {}

    def number(self, value: object) -> int | None:
        """The number of an id; none where it can't be one."""
        if isinstance(value, str):
            try:
                if value.isascii() and len(value) < 19 and str(int(value)) == value:
                    return int(value)
            except ValueError:
                pass
            return self._of_text.setdefault(value, _FIRST_TEXT_ID - len(self._of_text))
        whole = _whole(value)
        return whole if _is_int64(whole) else None


def _find_files(
    rows: NDArray[np.void], texts: bytearray, folder: Path, problems: Problems, *, ignore_exif: bool
) -> NDArray[np.bool_]:
    """Which images have files; fills in where those are, by their bare names too, and sizes that the JSON has not."""
    names_in, is_there = cache(_names_in), np.ones(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        name = _name(texts, row)
        path = folder / name
        if path.name not in names_in(path.parent):
            bare = folder / path.name
            if bare.name not in names_in(folder):
                problems.add("images left out, for there is no such file", str(path))
                is_there[index] = False
                continue
            path = bare
            rows[index]["name"] = _added(texts, path.name)
        if not row["size"].all():
            try:
                rows[index]["size"] = image_size(path, ignore_exif=ignore_exif)[::-1]
            except XCiTError as error:
                problems.add("images left out, for neither the JSON nor the file has their size", str(error))
                is_there[index] = False
    return is_there


def _unused_parent(categories: Sequence[Any], index_of: Mapping[int, int], ids: _Ids) -> int | None:
    """The label of a category that others are said to be kinds of, if it is the first and has the id 0."""
    first = categories[0]
    parents = {str(entry.get("supercategory")) for entry in categories[1:]}
    if len(categories) > 1 and ids.number(first["id"]) == 0 and parents == {first["name"]}:
        return index_of[0]
    return None


def _annotation_file(data: Path, split: Split) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise XCiTError(f"{data}: no such folder or file; data is a folder in COCO's form, or a COCO-format JSON file")
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
    """The file at a place below a folder, whatever the case of its letters."""
    if (root / place).is_file():
        return root / place
    found = [root]
    for part in place.split("/"):
        found = [entry for folder in found for entry in _entries(folder) if entry.name.casefold() == part.casefold()]
    return next((path for path in found if path.is_file()), None)


def _entries(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.iterdir()))
    except OSError:  # a file, or not to be read
        return ()


def has_annotations_of(data: str, split: Split) -> bool:
    """Whether a split has a file of its own; one file serves as either."""
    root = Path(data)
    if not root.is_dir():
        return False
    root = below_single_folders(root)
    return any(_in_any_case(root, place) is not None for place in _places_of(split))


def _images(
    source: Path, texts: bytearray, categories: list[Any], problems: Problems, ids: _Ids
) -> Iterator[tuple[Any, ...]]:
    """The images, without their objects; their names are added to `texts`, and to `categories` their entries.

    A size that is not given is 0.
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
                problems.add("images left out, for they lack id or file_name", _brief(entry))
            elif not all(_is_int64(length) and length >= 0 for length in sizes):
                problems.add("images left out, for height or width is no number of pixels", _brief(entry))
            elif max(sizes) > FARTHEST or sizes[0] * sizes[1] >= 2**31:
                problems.add("images left out, for no picture is that large", f"{name}: {sizes}")
            elif number in seen:
                problems.add("images left out, for another has their id", f"{name} (id {fields['id']})")
            else:
                seen.add(number)
                yield number, sizes, _added(texts, _place_of_file(name)), (0, 0)
    if not all(kinds.get(key) is list for key in ("images", "categories")):
        raise XCiTError(f"{source}: not in COCO's format: it needs lists of 'images' and 'categories'")
    if kinds.get("annotations", list) is not list:
        raise XCiTError(f"{source}: not in COCO's format: 'annotations' is no list")


def _place_of_file(name: str) -> str:
    r"""A file's name with / between folders, where Windows wrote \."""
    return name if "/" in name else name.replace("\\", "/")


def _added(texts: bytearray, text: str) -> tuple[int, int]:
    """Adds a text, and says where it is."""
    start = len(texts)
    texts += text.encode(errors="surrogatepass")
    return start, len(texts)


def _name(texts: bytearray, image: np.void) -> str:
    start, end = image["name"]
    return texts[start:end].decode(errors="surrogatepass")


def _categories(entries: Sequence[Any], source: Path, ids: _Ids) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names in the file's order, and the label of each category id."""
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


def _image_folder(data: Path, source: Path, split: Split, first: Sequence[str]) -> Path:
    """The first place where one of the first images, by name, is; where none is, the first place that exists."""
    roots = [below_single_folders(data), data] if data.is_dir() else [source.parent, source.parent.parent]
    # The images of `val.json` are in `val`, whichever split is asked for.
    own = [source.parent / source.stem] if data.is_file() else [source.parent]
    splits = [name for name in (*SPLIT_NAMES["train"], *SPLIT_NAMES["val"]) if name in source.stem.casefold()]
    if data.is_dir():
        splits = [*SPLIT_NAMES[split], *(name.capitalize() for name in SPLIT_NAMES[split])]
    places = [
        *own,
        *(root / place.format(split=name) for name in splits or [split] for root in roots for place in _IMAGE_FOLDERS),
    ]
    for whole in (True, False):  # the folders in a name may be those of another machine
        for place in places:
            if any(is_file(place / (name if whole else Path(name).name)) for name in first):
                return place
    return next((place for place in places[1:] if place.is_dir()), source.parent)


def _objects(
    source: Path,
    images: NDArray[np.void],
    is_there: NDArray[np.bool_],
    index_of: Mapping[int, int],
    texts: bytearray,
    problems: Problems,
    ids: _Ids,
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
        what = f"annotation {_brief(entry['id']) if 'id' in entry else f'number {number}'}"
        place = place_of.get(_known(ids.number(entry.get("image_id"))))
        if place is None:
            problems.add(
                "annotations left out, for no image has their image_id", f"{what}: {_brief(entry.get('image_id'))}"
            )
            continue
        what += f" of {_name(texts, images[place])}"
        if not is_there[place]:
            problems.add("annotations left out with their images", what)
            continue
        label = index_of.get(_known(ids.number(entry.get("category_id"))))
        if label is None:
            problems.add(
                "annotations left out, for no category has their category_id",
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
            yield place, label, *found, _added(texts, text if segmentation else "")


def _good_part(segmentation: Any, what: str, problems: Problems) -> Any:
    """A mask without those of its polygons that have no area to be, where others have; one flat polygon in a list."""
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation
    if not mask_problem([segmentation], (1, 1)):
        return [segmentation]
    good = [polygon for polygon in segmentation if not mask_problem([polygon], (1, 1))]
    if not good or len(good) == len(segmentation):
        return segmentation
    bad = len(segmentation) - len(good)
    problems.add("masks without those of their polygons that are none", f"{what}: {bad} of {len(segmentation)}")
    return good


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
    except (OSError, ValueError):  # ValueError: a zero byte in its name
        return frozenset()


def _numbers(values: object) -> tuple[float, ...]:
    """Finite numbers of a list; none if one is not."""
    if not isinstance(values, list):
        return ()
    # Compared, for `math.isfinite` fails at whole numbers beyond all floats.
    if not all(isinstance(value, int | float) and -_GREATEST <= value <= _GREATEST for value in values):
        return ()
    return tuple(float(value) for value in values)


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _whole(value: object) -> Any:
    """A whole number that is written as one, as a float or as text; else what it is."""
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
        return "lists within lists, too deep to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
