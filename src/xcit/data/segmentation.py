"""Images with label maps, as they lie on disk: ADE20K, and any folder of images and label PNGs with a list of classes.

Shapes: `h`, `w` a picture's. A label map is uint8 (h, w): a class of each pixel, 255 where it does not count.
"""

from collections import Counter
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
from xcit.images.read import read_image, read_labels
from xcit.zoo.classes import ade20k_class_names

IGNORED = 255
"""The label of pixels that count neither in training nor in a figure."""

Labels = NDArray[np.uint8]

_LABEL_FOLDERS = ("labels", "masks", "annotations")

_LOOKED_AT = 50
"""Label maps of two classes that are read to see whether they are masks of 0 and 255."""

_SHOWN = 5
"""Classes that a line names."""

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
        is_mask: whether a file is a mask of two classes that says 255 for the second.
        ignore_exif: whether images are read as they are stored, whatever their EXIF orientation.
        source: where the images were found.
        problems: lines about what is not as it should be.
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
        """A scene; the number is for `TrainLoader`, which wants one.

        Raises:
            XCiTError: naming the file, if one of the two can't be read, or they do not fit.
        """
        image_path, label_path = self.items[index]
        image, values = read_image(image_path, ignore_exif=self.ignore_exif), read_labels(label_path)
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
        # 0 becomes 255 by itself.
        return values - np.uint8(1) if self.zero_is_ignored else values

    def ignoring(self, label: int | None) -> "LabelledScenes":
        """The same scenes, of which one more label does not count; none changes nothing."""
        if label is None:
            return self
        return replace(self, ignored=label, is_mask=self.is_mask and label != IGNORED)

    def describe(self) -> str:
        """What was found, in a line."""
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
        data: a folder in one of two forms. ADE20K as it is unpacked: ADEChallengeData2016, or the folder that holds it,
            with images/training, images/validation, annotations/training and annotations/validation. Any other:
            images/train and images/val, label maps of the same names with the suffix .png in labels/train and
            labels/val, and classes.txt, a class name a line; a label is a line's number from 0, or 255 for pixels that
            do not count. Images may lie in folders below these. The splits may have other names (see `SPLIT_NAMES`) and
            hold the folders, as in train/images and train/masks. Of two classes, maps without a 1 that have 255 are
            masks: 255 is the second class.
        split: "val" is what a model is measured on.
        ignore_exif: whether label maps were drawn on the pixels as they are stored, not as a viewer turns them.

    Raises:
        XCiTError: if there is no such folder, no images in it, or images without label maps.
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
            f"{classes}: {len(names)} classes, must be 2 to {IGNORED}, a name a line; what is in no class is one too: "
            "background"
        )
    images, labels = _folders_of(root, split)
    items, problems = _pairs(images, labels)
    scenes = LabelledScenes(items, names, ignore_exif=ignore_exif, source=str(images), problems=problems)
    if len(names) == 2 and _are_masks(root, items):
        line = f"{labels}: its label maps are masks of 0 and {IGNORED}: {IGNORED} is taken for {names[1]!r}"
        scenes = replace(scenes, is_mask=True, problems=(line, *problems))
    return scenes


def _folders_of(root: Path, split: Split) -> tuple[Path, Path]:
    """The folders of a split's images and label maps: images/train and labels/train, or train/images and train/labels.

    Raises:
        XCiTError: if there are no such folders.
    """
    for name in SPLIT_NAMES[split]:
        for images in (root / "images" / name, root / name / "images"):
            is_inside = images.name == "images"
            places = [root / name / kind if is_inside else root / kind / name for kind in _LABEL_FOLDERS]
            if images.is_dir():
                return images, next((place for place in places if place.is_dir()), places[0])
    return root / "images" / split, root / "labels" / split


def _are_masks(root: Path, items: Sequence[tuple[Path, Path]]) -> bool:
    """Whether label maps of two classes say 255 for the second: none of the first ones has 1, and one has 255.

    Those to train on decide for both splits, so that the two can't be read differently.
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
        except XCiTError:  # told when it is read to be trained on
            continue
        if 1 in found:
            return False
        has_white = has_white or IGNORED in found
    return has_white


def _pairs(images: Path, labels: Path) -> tuple[list[tuple[Path, Path]], tuple[str, ...]]:
    """Images with their label maps, and a line for each kind of file that was left out."""
    for folder in (images, labels):
        if not folder.is_dir():
            raise XCiTError(f"{folder}: no such folder; data is {KNOWN_LAYOUTS}")
    others: Counter[str] = Counter()
    found = images_below(images, others)
    if not found:
        raise XCiTError(f"{images}: no images in it")
    place_of = {path.relative_to(labels).with_suffix(""): path for path in images_below(labels)}
    pairs = []
    for image in found:
        name = image.relative_to(images).with_suffix("")
        # The images' own place among the label maps, so that a missing one is named.
        pairs.append((image, place_of.pop(name) if name in place_of else labels / f"{name}.png"))
    lonely = [image for image, label in pairs if not label.is_file()]
    if lonely:
        raise XCiTError(
            f"{len(lonely)} of the {len(pairs)} images in {images} have no label map in {labels}; the first: "
            f"{lonely[0].relative_to(images)}"
        )
    problems = []
    if place_of:
        problems.append(f"{labels}: {len(place_of)} label maps left out, for they have no image: {min(place_of)}")
    return pairs, (*problems, *left_out(images, others))
