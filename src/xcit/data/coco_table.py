"""Stores the images and objects of a COCO-format file in arrays, which forked processes share."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcit.data.coco_masks import CocoMask, box_polygon


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One object of an image.

    Attributes:
        label: index of the object's category, from 0.
        box: x, y, width and height in pixels, as in the file.
        area: area in pixels. The evaluation uses it to divide objects into small, medium and large.
        is_crowd: whether this is a group of objects. Groups are not trained on, and detections in a group do not count
            as errors.
        is_trainable: whether the object is used in training: it is not a group, its area is above 0, and its box
            overlaps the image and has sides of at least one pixel.
        entry: JSON text with the mask of the object; empty if the file has no mask for it.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    is_trainable: bool
    entry: bytes

    @property
    def segmentation(self) -> CocoMask:
        """The mask as polygons or RLE; the outline of the box if the file has no mask.

        The mask was checked when the file was read. Each access to this property parses the JSON text again.
        """
        mask: CocoMask = json.loads(self.entry)["segmentation"] if self.entry else box_polygon(self.box)
        return mask


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id in the JSON file, the path of the image file, its size (height, width), and its objects."""

    id: int
    path: Path
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]


IMAGE = np.dtype([("id", "i8"), ("size", "i8", 2), ("name", "i8", 2), ("objects", "i8", 2)])
OBJECT = np.dtype("i8, i8, (4,)f8, f8, ?, ?, (2,)i8")
OBJECT.names = ("image", "label", "box", "area", "is_crowd", "is_trainable", "entry")


@dataclass(frozen=True, eq=False)
class CocoTable(Sequence[CocoImage]):
    """The images and objects of a JSON file, stored in arrays instead of Python objects.

    Forked processes share memory as long as no process writes to it, and no process writes to these arrays. Python
    objects would not be shared: even reading an object changes its reference count.

    Attributes:
        folder: the folder of the image files.
        rows: a row of `IMAGE` per image: id, size (height, width), the range of the file name in `texts`, and the range
            of the image's objects in `objects`.
        objects: a row of `OBJECT` per object, in the order of the images: the index of the image, and the fields of
            `CocoObject`, where `entry` is a range in `texts`.
        texts: uint8, all file names and JSON texts in UTF-8, one after another.
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
        """Returns how many objects of each image are used in training, as int64 (number of images,)."""
        sums = np.concatenate([[0], np.cumsum(self.objects["is_trainable"])])
        return np.diff(sums[self.rows["objects"]])[:, 0]

    def _object(self, fields: Any) -> CocoObject:
        _, label, box, area, is_crowd, is_trainable, (start, end) = fields
        x, y, width, height = map(float, box)
        return CocoObject(label, (x, y, width, height), area, is_crowd, is_trainable, self.texts[start:end].tobytes())


def add_text(texts: bytearray, text: str) -> tuple[int, int]:
    """Appends a text to `texts`, and returns the start and the end (exclusive) of the text's bytes in `texts`."""
    start = len(texts)
    texts += text.encode(errors="surrogatepass")
    return start, len(texts)


def name_in(texts: bytearray, image: np.void) -> str:
    """Returns the file name of an image, which is given as a row of `IMAGE`."""
    start, end = image["name"]
    return texts[start:end].decode(errors="surrogatepass")
