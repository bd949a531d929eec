"""Opens data sets in COCO's format: a JSON file that lists images, categories and objects, and a folder of images.

Invalid entries of the JSON file are left out, counted and reported. All other entries are used.
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
        images: the images that have an image file, in the order of the JSON file.
        class_names: names of the classes (COCO's categories), in the order of the labels 0, 1, and so on.
        category_ids: ids of these categories in the JSON file, in the same order. Ids that are text are replaced by
            unused numbers.
        problems: one message for each kind of invalid entry.
        source: path of the JSON file.
        ignore_exif: whether the image files are read as stored, without the EXIF rotation.
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
        """Reads the image file of an image, and returns an RGB image.

        Raises:
            XCiTError: "<path>: <reason>" if the image file can't be read, or its size is not the size in the JSON file.
        """
        image = self.images[index]
        picture = read_image(image.path, ignore_exif=self.ignore_exif)
        if (picture.height, picture.width) != image.size:
            height, width = image.size
            otherwise = image_size(image.path, ignore_exif=not self.ignore_exif) == (width, height)
            hint = f"; the sizes agree with ignore_exif {str(not self.ignore_exif).lower()}" if otherwise else ""
            raise XCiTError(
                f"{image.path}: the picture is {picture.width} x {picture.height} pixels, but {width} x {height} in "
                f"{self.source}: the positions of its objects can't be right{hint}"
            )
        return picture

    def masks(self, index: int, objects: Sequence[CocoObject]) -> np.ndarray:
        """Returns the masks of n objects of an image: uint8 (n, height, width), with values 0 and 1."""
        size = self.images[index].size
        masks = [decode_mask(one.segmentation, size) for one in objects]
        return np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8)


def open_coco(data: str | os.PathLike[str], split: Split, *, ignore_exif: bool = False) -> CocoImages:
    """Opens one split of a COCO-format data set.

    Args:
        data: one of the following, where `<split>` is any name in `SPLIT_NAMES`.

            - A folder with `annotations/instances_<split>2017.json` and `<split>2017/`, as COCO is distributed.
            - A folder with `annotations/<split>.json` and `<split>/`.
            - A folder with `<split>/_annotations.coco.json`, as Roboflow writes it.
            - A folder with one JSON file for all images, as CVAT and Label Studio write it.
            - A JSON file. If there is only one JSON file, it is used for both splits.
        split: the split to open; "val" is the split for evaluation.
        ignore_exif: whether boxes and masks refer to the stored pixels, without the EXIF rotation.

    Raises:
        XCiTError: if the JSON file does not exist or is not in COCO's format, or if none of its images exists.
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
            f"{source}: none of its {len(rows)} images is in {folder} or in another folder for images{reasons}"
        )
    objects = np.fromiter(read_objects(source, rows, is_there, index_of, texts, problems, ids), OBJECT)
    objects = objects[np.argsort(objects["image"], kind="stable")]
    rows["objects"] = np.searchsorted(objects["image"], np.arange(len(rows))[:, None] + [0, 1])
    if (place := unused_parent(categories, index_of, ids)) is not None and not (objects["label"] == place).any():
        # Roboflow adds the name of the project as a category without objects. This category is removed.
        objects["label"] -= objects["label"] > place
        names = names[:place] + names[place + 1 :]
        index_of = {number: index for number, index in index_of.items() if index != place}
    table = CocoTable(folder, rows[is_there], objects, np.frombuffer(texts, np.uint8))
    return CocoImages(table, names, as_numbers(index_of), tuple(problems.lines()), source, ignore_exif)
