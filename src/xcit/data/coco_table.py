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


IMAGE = np.dtype([("id", "i8"), ("size", "i8", 2), ("name", "i8", 2), ("objects", "i8", 2)])
OBJECT = np.dtype("i8, i8, (4,)f8, f8, ?, ?, (2,)i8")
OBJECT.names = ("image", "label", "box", "area", "is_crowd", "is_trainable", "entry")


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


def add_text(texts: bytearray, text: str) -> tuple[int, int]:
    """Adds a text, and says where it is."""
    start = len(texts)
    texts += text.encode(errors="surrogatepass")
    return start, len(texts)


def name_in(texts: bytearray, image: np.void) -> str:
    """The name of the file of an image, a row of `IMAGE`."""
    start, end = image["name"]
    return texts[start:end].decode(errors="surrogatepass")
