"""The images of a COCO-format file and their objects as arrays, which forked processes share."""

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
        label: index of its category, from 0.
        box: x, y, width and height in pixels, as in the file.
        area: area in pixels, which decides whether the object counts as small, medium or large.
        is_crowd: whether it is a group of objects. Groups are not trained on, and detections in them are not errors.
        is_trainable: whether its box has an area within the image.
        entry: its JSON text in the file; empty if that contains no mask.
    """

    label: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    is_trainable: bool
    entry: bytes

    @property
    def segmentation(self) -> CocoMask:
        """Polygons or RLE, checked; the outline of the box if the file has no mask.

        Each access parses the text again.
        """
        mask: CocoMask = json.loads(self.entry)["segmentation"] if self.entry else box_polygon(self.box)
        return mask


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id in the annotation file, its image file, its height and width, and its objects."""

    id: int
    path: Path
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]


IMAGE = np.dtype([("id", "i8"), ("size", "i8", 2), ("name", "i8", 2), ("objects", "i8", 2)])
OBJECT = np.dtype("i8, i8, (4,)f8, f8, ?, ?, (2,)i8")
OBJECT.names = ("image", "label", "box", "area", "is_crowd", "is_trainable", "entry")


@dataclass(frozen=True, eq=False)
class CocoTable(Sequence[CocoImage]):
    """The images of an annotation file and their objects, stored in arrays instead of Python objects.

    Forked processes share these arrays, because no process ever writes to them; even reading a Python object writes to
    its reference count.

    Attributes:
        folder: the folder of the image files.
        rows: for each image its id, height and width, the range of its file's name in `texts`, and the range of its
            objects in `objects`.
        objects: the objects of all images, in order: the fields of `CocoObject`, with `entry` as a range in `texts`.
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
        """Returns the number of each image's objects that are trained on, int64 (number of images,)."""
        sums = np.concatenate([[0], np.cumsum(self.objects["is_trainable"])])
        return np.diff(sums[self.rows["objects"]])[:, 0]

    def _object(self, fields: Any) -> CocoObject:
        _, label, box, area, is_crowd, is_trainable, (start, end) = fields
        x, y, width, height = map(float, box)
        return CocoObject(label, (x, y, width, height), area, is_crowd, is_trainable, self.texts[start:end].tobytes())


def add_text(texts: bytearray, text: str) -> tuple[int, int]:
    """Appends a text, and returns its start and end in `texts`."""
    start = len(texts)
    texts += text.encode(errors="surrogatepass")
    return start, len(texts)


def name_in(texts: bytearray, image: np.void) -> str:
    """Returns the name of an image's file; the image is a row of `IMAGE`."""
    start, end = image["name"]
    return texts[start:end].decode(errors="surrogatepass")
