"""Opens COCO-format data sets: a JSON file of images, categories and objects, and a folder of images.

Invalid entries are left out, counted and reported; the other entries are used.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.data.coco_entries import (
    Ids,
    Problems,
    as_numbers,
    find_files,
    read_categories,
    read_images,
    read_objects,
    unused_parent,
)
from xcit.data.coco_masks import decode_mask
from xcit.data.coco_places import annotation_file, image_folder
from xcit.data.coco_table import IMAGE, OBJECT, CocoObject, CocoTable, name_in
from xcit.data.named import Split
from xcit.errors import XCiTError, some_of
from xcit.images.read import image_size, read_image


@dataclass(frozen=True)
class CocoImages:
    """A split of a COCO-format data set.

    Attributes:
        images: the images whose files exist, in the order of the JSON file.
        class_names: names of the labels 0, 1, ..., in the order of the JSON file.
        category_ids: ids of the same categories in the JSON file, in the same order.
        problems: one line for each kind of invalid entry.
        source: the JSON file.
        ignore_exif: whether pictures are read as they are stored, without their EXIF orientation.
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
        """Returns one line about the classes, images and objects."""
        return (
            f"{len(self.class_names)} classes: {some_of(self.class_names)}; {len(self)} images and "
            f"{len(self.images.objects)} objects in {self.source}"
        )

    def read(self, index: int) -> Image.Image:
        """Returns the RGB picture of an image.

        Raises:
            XCiTError: "<path>: <reason>" if it can't be read, or has another size than the JSON file says.
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
        """Returns masks (n, height, width) of objects of an image, uint8 with values 0 and 1."""
        size = self.images[index].size
        masks = [decode_mask(one.segmentation, size) for one in objects]
        return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)


def open_coco(data: str | os.PathLike[str], split: Split, *, ignore_exif: bool = False) -> CocoImages:
    """Opens one split of a COCO-format data set.

    Args:
        data: a folder with `annotations/instances_<split>2017.json` and `<split>2017/` in it, as COCO is distributed,
            or `annotations/<split>.json` and `<split>/`, or `<split>/_annotations.coco.json` (Roboflow), where
            `<split>` is any of `SPLIT_NAMES`; or a folder with one JSON file for all images, as CVAT and Label Studio
            write it; or a JSON file. A single file is used for both splits.
        split: the split to open; models are measured on "val".
        ignore_exif: whether boxes and masks refer to the pixels as they are stored, before the EXIF rotation.

    Raises:
        XCiTError: if there is no such file, it is not COCO-format JSON, or none of its images exists.
    """
    root = Path(data)
    source = annotation_file(root, split)
    problems, texts, categories, ids = Problems(), bytearray(), list[Any](), Ids()
    rows = np.fromiter(read_images(source, texts, categories, problems, ids), IMAGE)
    names, index_of = read_categories(categories, source, ids)
    folder = image_folder(root, source, split, [name_in(texts, row) for row in rows[:20]])
    is_there = find_files(rows, texts, folder, problems, ignore_exif=ignore_exif)
    if not is_there.any():
        reasons = "".join(f"\n  {line}" for line in problems.lines()[:2])
        raise XCiTError(
            f"{source}: none of its {len(rows)} images is in {folder} or another place where they may be{reasons}"
        )
    objects = np.fromiter(read_objects(source, rows, is_there, index_of, texts, problems, ids), OBJECT)
    objects = objects[np.argsort(objects["image"], kind="stable")]
    rows["objects"] = np.searchsorted(objects["image"], np.arange(len(rows))[:, None] + [0, 1])
    if (place := unused_parent(categories, index_of, ids)) is not None and not (objects["label"] == place).any():
        # Roboflow adds the project's name as a category without objects.
        objects["label"] -= objects["label"] > place
        names = names[:place] + names[place + 1 :]
        index_of = {number: index for number, index in index_of.items() if index != place}
    table = CocoTable(folder, rows[is_there], objects, np.frombuffer(texts, np.uint8))
    return CocoImages(table, names, as_numbers(index_of), tuple(problems.lines()), source, ignore_exif)
