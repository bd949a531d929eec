"""Opens images with label maps: ADE20K, or a folder of images and label PNGs with a list of classes.

Shapes: `h` and `w` are the height and width of an image. A label map is uint8 (h, w). It has the class index of each
pixel, or 255 for pixels that are ignored in training and evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.data.named import Split
from xcit.data.samples import parse_class_names
from xcit.data.splits import SPLIT_NAMES, below_single_folders, left_out
from xcit.errors import XCiTError, some_of
from xcit.images.find import images_below
from xcit.images.passed_by import PassedBy
from xcit.images.read import read_image, read_labels
from xcit.zoo.classes import ade20k_class_names

IGNORED = 255
"""The label of pixels that are ignored in training and evaluation."""

Labels = NDArray[np.uint8]

_LABEL_FOLDERS = ("labels", "masks", "annotations")

_LOOKED_AT = 50
"""Number of label maps that are always read to detect whether two classes are stored as masks of 0 and 255."""

_SHOWN = 5
"""Number of class names that are listed in a message."""

KNOWN_LAYOUTS = (
    "the folder ADEChallengeData2016, or a folder with images/train, images/val, labels/train, labels/val and "
    "classes.txt"
)


class Scene(NamedTuple):
    """An image and its label map."""

    image: Image.Image
    labels: Labels


@dataclass(frozen=True)
class LabelledScenes:
    """One split of a data set.

    Attributes:
        items: pairs of an image file and a label file.
        class_names: class names in the order of the labels.
        zero_is_ignored: whether label files contain 0 for ignored pixels and k + 1 for class k, as in ADE20K. If false,
            they contain 255 for ignored pixels and k for class k.
        ignored: an additional label to ignore, or None; it may be the label of a class.
        is_mask: whether label files are masks of two classes, with 255 for the second class.
        ignore_exif: whether images are read as stored, without the EXIF rotation.
        source: path of the folder in which the images were found.
        problems: messages about problems in the data.
    """

    items: Sequence[tuple[Path, Path]]
    class_names: tuple[str, ...]
    zero_is_ignored: bool = False
    ignored: int | None = None
    is_mask: bool = False
    ignore_exif: bool = False
    source: str = ""
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Scene, int]:
        """Returns a scene and the number 0. `TrainLoader` needs this number as a label; it has no meaning.

        Raises:
            XCiTError: "<path>: <reason>" if the image or the label map can't be read, or their sizes differ.
        """
        image, labels = read_image(self.items[index][0], ignore_exif=self.ignore_exif), self.labels(index)
        if image.size != labels.shape[::-1]:
            raise XCiTError(self.differing(index, labels, image.size))
        return Scene(image, labels), 0

    def labels(self, index: int) -> Labels:
        """Returns the label map of a scene.

        Raises:
            XCiTError: "<path>: <reason>" if the label file can't be read, or has a label that is not a class.
        """
        path = self.items[index][1]
        return self._classes_of(read_labels(path), path)

    def differing(self, index: int, labels: Labels, size: tuple[int, int]) -> str:
        """Returns the error message for an image and a label map of different sizes; `size` is the image's (w, h)."""
        image, path = self.items[index]
        height, width = labels.shape
        return (
            f"{path}: the label map has {width} x {height} pixels, but the image {image.name} has "
            f"{size[0]} x {size[1]} pixels"
        )

    def image_name(self, index: int) -> str:
        """Returns the name of a scene for messages."""
        return str(self.items[index][0])

    def _classes_of(self, values: Labels, path: Path) -> Labels:
        num_classes = len(self.class_names)
        if self.is_mask:
            values = self._unmasked(values, path)
        if self.ignored is not None:
            in_file, nothing = (self.ignored + 1, 0) if self.zero_is_ignored else (self.ignored, IGNORED)
            values = np.where(values == in_file, np.uint8(nothing), values)
        if self.zero_is_ignored:
            wrong, allowed = values > num_classes, f"0 (ignored) to {num_classes}"
        else:
            wrong, allowed = (values >= num_classes) & (values != IGNORED), f"0 to {num_classes - 1}, or {IGNORED}"
        if wrong.any():
            found = ", ".join(map(str, np.unique(values[wrong])[:5]))
            raise XCiTError(
                f"{path}: {int(wrong.sum())} of {values.size} pixels have a label that is not a class: {found}; "
                f"labels are {allowed}"
            )
        # In uint8 arithmetic, 0 - 1 is 255, which is `IGNORED`.
        return values - np.uint8(1) if self.zero_is_ignored else values

    def ignoring(self, label: int | None) -> "LabelledScenes":
        """Returns the same scenes, in which the label `label` is also ignored; if `label` is None, changes nothing."""
        if label is None:
            return self
        return replace(self, ignored=label, is_mask=self.is_mask and label != IGNORED)

    def describe(self) -> str:
        """Returns one line: the number of classes, the first class names, and the number and folder of the images."""
        names = some_of(self.class_names, _SHOWN)
        return f"{len(self.class_names)} classes: {names}; {len(self)} images in {self.source}"

    def _unmasked(self, values: Labels, path: Path) -> Labels:
        if (values == 1).any():
            raise XCiTError(
                f"{path}: it has pixels with label 1, but the first label maps of {self.source} contain only 0 and "
                f"{IGNORED}: use label 1 for {self.class_names[1]!r} in all label maps"
            )
        return np.where(values == IGNORED, np.uint8(1), values)


def open_scenes(data: str, split: Split, *, ignore_exif: bool = False) -> LabelledScenes:
    """Opens one split of a data set.

    Args:
        data: a folder in one of two layouts.

            - ADE20K: the folder ADEChallengeData2016, or the folder that contains it. It has images/training,
              images/validation, annotations/training and annotations/validation.
            - A folder with images/train, images/val, labels/train, labels/val and classes.txt. A label map has the name
              of its image, with the suffix .png. classes.txt has one class name per line. The labels are the numbers of
              these lines, from 0, and 255 for ignored pixels. Images may be in subfolders.

              The splits may have other names, see `SPLIT_NAMES`. The order of the folders may also be train/images and
              train/labels. Instead of labels, the folder may be called masks or annotations. If there are two classes
              and the label maps contain 255 but not 1, they are masks, in which 255 is the second class.
        split: the split to open; "val" is the split for evaluation.
        ignore_exif: whether label maps refer to the stored pixels, without the EXIF rotation.

    Raises:
        XCiTError: if the folder does not exist, has no images, or has images without label maps.
    """
    root = Path(data)
    if not root.is_dir():
        raise XCiTError(f"{data}: no such folder; data must be {KNOWN_LAYOUTS}")
    if not (root / "classes.txt").is_file():
        root = below_single_folders(root)
    classes = root / "classes.txt"
    ade20k = next(
        (folder for folder in (root, root / "ADEChallengeData2016") if (folder / "annotations").is_dir()), None
    )
    if ade20k is not None and not classes.is_file():
        folder = "training" if split == "train" else "validation"
        images = ade20k / "images" / folder
        items, problems = _pairs(images, ade20k / "annotations" / folder)
        return LabelledScenes(items, ade20k_class_names(), zero_is_ignored=True, source=str(images), problems=problems)
    if not classes.is_file():
        raise XCiTError(f"{data}: the folder has no classes.txt: data must be {KNOWN_LAYOUTS}")
    names = parse_class_names(classes.read_text(encoding="utf-8"))
    if not 2 <= len(names) <= IGNORED:
        raise XCiTError(
            f"{classes}: {len(names)} classes, but must be 2 to {IGNORED}, one name per line; if some pixels show none "
            "of your classes, add a class for them, such as background"
        )
    images, labels = _folders_of(root, split)
    items, problems = _pairs(images, labels)
    scenes = LabelledScenes(items, names, ignore_exif=ignore_exif, source=str(images), problems=problems)
    if len(names) == 2 and _are_masks(root, items):
        line = f"{labels}: its label maps are masks of 0 and {IGNORED}: {IGNORED} means {names[1]!r}"
        scenes = replace(scenes, is_mask=True, problems=(line, *problems))
    return scenes


def _folders_of(root: Path, split: Split) -> tuple[Path, Path]:
    """Returns the folders of a split's images and label maps, such as images/train and labels/train.

    If there is no folder of images, returns paths of folders that do not exist.
    """
    for name in SPLIT_NAMES[split]:
        for images in (root / "images" / name, root / name / "images"):
            is_inside = images.name == "images"
            places = [root / name / kind if is_inside else root / kind / name for kind in _LABEL_FOLDERS]
            if images.is_dir():
                return images, next((place for place in places if place.is_dir()), places[0])
    return root / "images" / split, root / "labels" / split


def _are_masks(root: Path, items: Sequence[tuple[Path, Path]]) -> bool:
    """Returns whether the label maps are masks of two classes: at least one map contains 255, and none contains 1.

    The first `_LOOKED_AT` maps are read. If none of them contains 255, more maps are read until one contains 255. The
    maps of the training split are used for both splits, so that the result is the same for both splits.
    """
    images, labels = _folders_of(root, "train")
    if images.is_dir() and labels.is_dir():
        items, _ = _pairs(images, labels)
    has_white = False
    for number, (_, path) in enumerate(items):
        if number >= _LOOKED_AT and has_white:
            break
        try:
            found = np.unique(read_labels(path))
        except XCiTError:  # the error is reported when the label map is read for training
            continue
        if 1 in found:
            return False
        has_white = has_white or IGNORED in found
    return has_white


def _pairs(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], tuple[str, ...]]:
    """Returns pairs of an image and its label map, and one message for each kind of file that was left out.

    Raises:
        XCiTError: if a folder does not exist, there are no images, or an image has no label map.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise XCiTError(f"{folder}: no such folder; data must be {KNOWN_LAYOUTS}")
    beside_images, beside_labels = PassedBy(), PassedBy()
    found = images_below(images, beside_images)
    if not found:
        raise XCiTError(f"{images}: no images in it")
    place_of = {path.relative_to(labels).with_suffix(""): path for path in images_below(labels, beside_labels)}
    pairs = []
    for image in found:
        name = image.relative_to(images).with_suffix("")
        # An image without a label map gets the path where a label map is expected. This file does not exist, which is
        # noticed below.
        pairs.append((image, place_of.pop(name) if name in place_of else labels / f"{name}.png"))
    lonely = [image for image, label in pairs if not label.is_file()]
    if lonely:
        raise XCiTError(
            f"{len(lonely)} of the {len(pairs)} images in {images} have no label map in {labels}; the first: "
            f"{lonely[0].relative_to(images)}"
        )
    problems = []
    if place_of:
        problems.append(
            f"{labels}: {len(place_of)} label maps left out, because they have no image; the first: {min(place_of)}"
        )
    return pairs, (*problems, *left_out(images, beside_images), *left_out(labels, beside_labels))
