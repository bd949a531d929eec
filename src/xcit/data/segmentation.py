"""Images with label maps on disk: ADE20K, or any folder of images and label PNGs with a list of classes.

Shapes: `h`, `w` size of an image. A label map is uint8 (h, w), with the class of each pixel, or 255 for pixels that do
not count.
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
"""The label of pixels that count neither in training nor in evaluation."""

Labels = NDArray[np.uint8]

_LABEL_FOLDERS = ("labels", "masks", "annotations")

_LOOKED_AT = 50
"""Number of label maps that are read to detect whether two classes are stored as masks of 0 and 255."""

_SHOWN = 5
"""Number of classes that a message names."""

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
        class_names: class names in the order of the labels.
        zero_is_ignored: whether a label file has 0 for pixels that do not count and k + 1 for class k, as in ADE20K. If
            false, it has k for class k and 255 for pixels that do not count.
        ignored: another label whose pixels do not count; it may be the label of a class.
        is_mask: whether a label file is a mask of two classes, with 255 for the second.
        ignore_exif: whether images are read as stored, without their EXIF rotation.
        source: where the images were found.
        problems: lines about problems in the data.
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
        """Returns a scene, and a label without meaning, because `TrainLoader` expects a label.

        Raises:
            XCiTError: if one of the two files can't be read, or their sizes differ; the message names the file.
        """
        image, labels = read_image(self.items[index][0], ignore_exif=self.ignore_exif), self.labels(index)
        if image.size != labels.shape[::-1]:
            raise XCiTError(self.differing(index, labels, image.size))
        return Scene(image, labels), 0

    def labels(self, index: int) -> Labels:
        """Returns a scene's label map.

        Raises:
            XCiTError: if the file can't be read; the message names it.
        """
        path = self.items[index][1]
        return self._classes_of(read_labels(path), path)

    def differing(self, index: int, labels: Labels, size: tuple[int, int]) -> str:
        """Returns the error for a scene whose image has another size (width, height) than its label map."""
        image, path = self.items[index]
        height, width = labels.shape
        return f"{path}: its label map has {width} x {height} pixels, the image {image.name} {size[0]} x {size[1]}"

    def image_name(self, index: int) -> str:
        """Returns a name of a scene for messages."""
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
                f"{path}: {int(wrong.sum())} of {values.size} pixels have a label that is no class: {found}; "
                f"labels are {allowed}"
            )
        # In uint8 arithmetic, 0 - 1 is 255.
        return values - np.uint8(1) if self.zero_is_ignored else values

    def ignoring(self, label: int | None) -> "LabelledScenes":
        """Returns the same scenes with one more label that does not count; None changes nothing."""
        if label is None:
            return self
        return replace(self, ignored=label, is_mask=self.is_mask and label != IGNORED)

    def describe(self) -> str:
        """Describes in one line what was found."""
        names = some_of(self.class_names, _SHOWN)
        return f"{len(self.class_names)} classes: {names}; {len(self)} images in {self.source}"

    def _unmasked(self, values: Labels, path: Path) -> Labels:
        if (values == 1).any():
            raise XCiTError(
                f"{path}: it has pixels of label 1, and the first label maps of {self.source} are masks of 0 and "
                f"{IGNORED}: write 1 for {self.class_names[1]!r} in all of them"
            )
        return np.where(values == IGNORED, np.uint8(1), values)


def open_scenes(data: str, split: Split, *, ignore_exif: bool = False) -> LabelledScenes:
    """Opens one split of a data set.

    Args:
        data: a folder in one of two layouts. The first is ADE20K's: ADEChallengeData2016, or the folder that contains
            it, with images/training, images/validation, annotations/training and annotations/validation. The second has
            images/train and images/val, label maps with the same names and the suffix .png in labels/train and
            labels/val, and classes.txt with a class name per line. A label is the number of a line, from 0, or 255 for
            pixels that do not count. Images may be in folders below these. The splits may have other names (see
            `SPLIT_NAMES`) and may contain the folders, as in train/images and train/masks. With two classes, maps that
            contain 255 but not 1 are masks, in which 255 is the second class.
        split: "val" is the split for evaluation.
        ignore_exif: whether label maps refer to the stored pixels, and not to the image as a viewer rotates it.

    Raises:
        XCiTError: if there is no such folder, it has no images, or images lack label maps.
    """
    root = Path(data)
    if not root.is_dir():
        raise XCiTError(f"{data}: no such folder; data is {KNOWN_LAYOUTS}")
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
        raise XCiTError(f"{data}: no classes.txt in it: data is {KNOWN_LAYOUTS}")
    names = parse_class_names(classes.read_text(encoding="utf-8"))
    if not 2 <= len(names) <= IGNORED:
        raise XCiTError(
            f"{classes}: {len(names)} classes, must be 2 to {IGNORED}, one name per line; pixels outside of all "
            "classes need a class too, such as background"
        )
    images, labels = _folders_of(root, split)
    items, problems = _pairs(images, labels)
    scenes = LabelledScenes(items, names, ignore_exif=ignore_exif, source=str(images), problems=problems)
    if len(names) == 2 and _are_masks(root, items):
        line = f"{labels}: its label maps are masks of 0 and {IGNORED}: {IGNORED} is taken for {names[1]!r}"
        scenes = replace(scenes, is_mask=True, problems=(line, *problems))
    return scenes


def _folders_of(root: Path, split: Split) -> tuple[Path, Path]:
    """Returns the folders of a split's images and label maps: images/train and labels/train, or train/images and so on.

    Raises:
        XCiTError: if the folders do not exist.
    """
    for name in SPLIT_NAMES[split]:
        for images in (root / "images" / name, root / name / "images"):
            is_inside = images.name == "images"
            places = [root / name / kind if is_inside else root / kind / name for kind in _LABEL_FOLDERS]
            if images.is_dir():
                return images, next((place for place in places if place.is_dir()), places[0])
    return root / "images" / split, root / "labels" / split


def _are_masks(root: Path, items: Sequence[tuple[Path, Path]]) -> bool:
    """Whether the label maps are masks of two classes: at least one map contains 255, and none contains 1.

    The first `_LOOKED_AT` maps are read. If none of them contains 255, the following maps are read until one does. The
    label maps of the training split decide for both splits, so that both splits are read in the same way.
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
        except XCiTError:  # reported when it is read for training
            continue
        if 1 in found:
            return False
        has_white = has_white or IGNORED in found
    return has_white


def _pairs(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], tuple[str, ...]]:
    """Returns images with their label maps, and one line for each kind of file that was left out."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise XCiTError(f"{folder}: no such folder; data is {KNOWN_LAYOUTS}")
    beside_images, beside_labels = PassedBy(), PassedBy()
    found = images_below(images, beside_images)
    if not found:
        raise XCiTError(f"{images}: no images in it")
    place_of = {path.relative_to(labels).with_suffix(""): path for path in images_below(labels, beside_labels)}
    pairs = []
    for image in found:
        name = image.relative_to(images).with_suffix("")
        # If the label map is missing, the error message names the path where it is expected.
        pairs.append((image, place_of.pop(name) if name in place_of else labels / f"{name}.png"))
    lonely = [image for image, label in pairs if not label.is_file()]
    if lonely:
        raise XCiTError(
            f"{len(lonely)} of the {len(pairs)} images in {images} have no label map in {labels}; the first: "
            f"{lonely[0].relative_to(images)}"
        )
    problems = []
    if place_of:
        problems.append(f"{labels}: {len(place_of)} label maps left out, because they have no image: {min(place_of)}")
    return pairs, (*problems, *left_out(images, beside_images), *left_out(labels, beside_labels))
