"""Images with label maps, as they lie on disk: ADE20K, and any folder of images and label PNGs with a list of classes.

Shapes: `h`, `w` a picture's. A label map is uint8 (h, w): a class of each pixel, 255 where it does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xcit.data.named import Split
from xcit.data.samples import parse_class_names
from xcit.errors import XCiTError
from xcit.images.read import images_below, read_image, read_labels
from xcit.zoo.classes import ade20k_class_names

IGNORED = 255
"""The label of pixels that count neither in training nor in a figure."""

Labels = NDArray[np.uint8]

KNOWN_LAYOUTS = (
    "the folder ADEChallengeData2016, or one with images/train, images/val, labels/train, labels/val and classes.txt"
)


class Scene(NamedTuple):
    """An image and its label map."""

    image: Image.Image
    labels: Labels


@dataclass(frozen=True)
class LabelledScenes:
    """One split of a data set.

    Attributes:
        items: image files with their label files.
        class_names: in the order of the labels.
        zero_is_ignored: whether a file says 0 for pixels that do not count, and k + 1 for class k, as ADE20K's do;
            else it says k for class k, and 255.
        ignored: one more label whose pixels do not count, a class's or any other.
    """

    items: Sequence[tuple[Path, Path]]
    class_names: tuple[str, ...]
    zero_is_ignored: bool = False
    ignored: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Scene, int]:
        """A scene; the number is for `TrainLoader`, which wants one.

        Raises:
            XCiTError: naming the file, if one of the two can't be read, or they do not fit.
        """
        image_path, label_path = self.items[index]
        image, values = read_image(image_path), read_labels(label_path)
        height, width = values.shape
        if image.size != (width, height):
            raise XCiTError(
                f"{label_path}: its label map has {width} x {height} pixels, the image {image_path.name} "
                f"{image.width} x {image.height}"
            )
        return Scene(image, self._classes_of(values, label_path)), 0

    def image_name(self, index: int) -> str:
        """What to call a scene in a message."""
        return str(self.items[index][0])

    def _classes_of(self, values: Labels, path: Path) -> Labels:
        num_classes = len(self.class_names)
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
                f"{path}: {int(wrong.sum())} of {values.size} pixels have a label that is no class: {found}; "
                f"labels are {allowed}"
            )
        # 0 becomes 255 by itself.
        return values - np.uint8(1) if self.zero_is_ignored else values


def open_scenes(data: str, split: Split) -> LabelledScenes:
    """Opens one split of a data set.

    Args:
        data: a folder in one of two forms. ADE20K as it is unpacked: ADEChallengeData2016, or the folder that holds it,
            with images/training, images/validation, annotations/training and annotations/validation. Any other:
            images/train and images/val, label maps of the same names with the suffix .png in labels/train and
            labels/val, and classes.txt, a class name a line; a label is a line's number from 0, or 255 for pixels that
            do not count. Images may lie in folders below these.
        split: "val" is what a model is measured on.

    Raises:
        XCiTError: if there is no such folder, no images in it, or images without label maps.
    """
    root = Path(data)
    if not root.is_dir():
        raise XCiTError(f"{data}: no such folder; data is {KNOWN_LAYOUTS}")
    ade20k = next(
        (folder for folder in (root, root / "ADEChallengeData2016") if (folder / "annotations").is_dir()), None
    )
    if ade20k is not None:
        folder = "training" if split == "train" else "validation"
        items = _pairs(ade20k / "images" / folder, ade20k / "annotations" / folder)
        return LabelledScenes(items, ade20k_class_names(), zero_is_ignored=True)
    classes = root / "classes.txt"
    if not classes.is_file():
        raise XCiTError(f"{data}: no classes.txt in it: data is {KNOWN_LAYOUTS}")
    names = parse_class_names(classes.read_text(encoding="utf-8"))
    if not 1 <= len(names) <= IGNORED:
        raise XCiTError(f"{classes}: {len(names)} classes, must be 1 to {IGNORED}, a name a line")
    return LabelledScenes(_pairs(root / "images" / split, root / "labels" / split), names)


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    for folder in (images, labels):
        if not folder.is_dir():
            raise XCiTError(f"{folder}: no such folder; data is {KNOWN_LAYOUTS}")
    found = images_below(images)
    if not found:
        raise XCiTError(f"{images}: no images in it")
    pairs = [(path, labels / path.relative_to(images).with_suffix(".png")) for path in found]
    lonely = [image for image, label in pairs if not label.is_file()]
    if lonely:
        raise XCiTError(
            f"{len(lonely)} of the {len(pairs)} images in {images} have no label map in {labels}; the first: "
            f"{lonely[0].relative_to(images)}"
        )
    return pairs
