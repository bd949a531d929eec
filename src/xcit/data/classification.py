"""Labelled images: class folders, ImageNet as people have it on disk, and the data sets known by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from xcit.data.named import FASHION_MNIST_CLASSES, Split, open_cifar, open_fashion_mnist
from xcit.data.streams import is_stream
from xcit.errors import XCiTError
from xcit.images.read import images_below, read_image
from xcit.zoo.classes import imagenet_class_ids

KNOWN_DATA = (
    "a folder of images by class, 'fashion-mnist', 'cifar10', 'cifar100', 'hf:NAME', or a stream: 'hf-stream:NAME' or "
    "'wds:PATTERN'"
)

GROUND_TRUTH_FILES = ("val.txt", "ILSVRC2012_val.txt", "LOC_val_solution.csv")
"""Labels of a flat folder of validation images: lines of file name and class index or wnid, or Kaggle's table."""


class LabelledImages(Protocol):
    """A list of images with class indices."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The classes' names on disk, in the order of the labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def image_name(self, index: int) -> str:
        """What to call an image in a message."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files with labels."""

    items: Sequence[tuple[Path, int]]
    class_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.items[index]
        return read_image(path), label

    def image_name(self, index: int) -> str:
        return str(self.items[index][0])


@dataclass(frozen=True)
class KnownImages:
    """A split of a data set of torchvision's: its test images are "val", the others "train"."""

    name: str
    class_ids: tuple[str, ...]
    images: Sequence[tuple[Image.Image, int]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index]

    def image_name(self, index: int) -> str:
        return f"{self.name} image {index}"


@dataclass(frozen=True)
class ImageSubset:
    """Some images of a data set, by index."""

    images: LabelledImages
    indices: Sequence[int]

    @property
    def class_ids(self) -> tuple[str, ...]:
        return self.images.class_ids

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[self.indices[index]]

    def image_name(self, index: int) -> str:
        return self.images.image_name(self.indices[index])


def open_labelled_images(data: str, split: Split) -> LabelledImages:
    """Opens one split of a data set.

    Args:
        data: "fashion-mnist", "cifar10" or "cifar100"; `hf:NAME`, a data set of the Hugging Face Hub or a folder of
            parquet files (see `open_hub_images`); or a folder in one of these forms: `<split>/<class>/<image>`
            (ImageNet's train and val by wnid), `<class>/<image>`, or a flat folder of ImageNet's validation images with
            one of `GROUND_TRUTH_FILES` in it, above it, or in a folder `meta` above it (as mmpretrain keeps it).
        split: "val" is what a model is measured on. A folder without splits serves as either.

    Raises:
        XCiTError: if there is no such data set or folder, or no images or labels in it.
    """
    if data == "fashion-mnist":
        return KnownImages(f"Fashion-MNIST {split}", FASHION_MNIST_CLASSES, open_fashion_mnist(split))
    if data in ("cifar10", "cifar100"):
        cifar = open_cifar(data, split)
        return KnownImages(f"{data} {split}", tuple(cifar.classes), cifar)
    if data.startswith("hf:"):
        from xcit.data.hub import open_hub_images

        return open_hub_images(data, split)
    if is_stream(data):
        raise XCiTError(f"{data}: a stream can't be used here; give a folder of images by class, or 'hf:NAME'")
    root = Path(data)
    if not root.is_dir():
        raise XCiTError(f"{data}: no such folder; data is {KNOWN_DATA}")
    if (root / split).is_dir():
        root = root / split
    by_class = {
        entry.name: images_below(entry)
        for entry in sorted(root.iterdir())
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "meta"
    }
    if split == "val" and not any(by_class.values()):
        flat = [path for path in images_below(root) if path.parent == root]
        if flat:
            return _flat_imagenet(root, flat)
    return _class_folders(root, by_class)


def has_validation(data: str) -> bool:
    """Whether a data set that `open_labelled_images` opens has images to measure on beside those to train on."""
    return not Path(data).is_dir() or (Path(data) / "val").is_dir()


def _class_folders(root: Path, by_class: Mapping[str, Sequence[Path]]) -> ImageFiles:
    empty = [name for name, images in by_class.items() if not images]
    if len(empty) == len(by_class):
        raise XCiTError(f"{root}: no images by class: expected folders named for the classes, with images in them")
    if empty:
        raise XCiTError(f"{root}: no images of class {empty[0]!r}; remove the empty folder or fill it")
    items = [(path, label) for label, images in enumerate(by_class.values()) for path in images]
    return ImageFiles(items, tuple(by_class))


def _flat_imagenet(root: Path, images: Sequence[Path]) -> ImageFiles:
    places = [folder / name for folder in (root, root.parent, root.parent / "meta") for name in GROUND_TRUTH_FILES]
    ground_truth = next((place for place in places if place.is_file()), None)
    if ground_truth is None:
        raise XCiTError(
            f"{root}: images without class folders need their labels in a file {GROUND_TRUTH_FILES[0]} beside or above "
            "them, one line an image: its file name and its class (index from 0, or wnid)"
        )
    class_ids = imagenet_class_ids()
    labels = _read_ground_truth(ground_truth, class_ids)
    items = []
    for path in images:
        if path.name not in labels and path.stem not in labels:
            raise XCiTError(f"{ground_truth}: no label for {path.name}")
        items.append((path, labels.get(path.name, labels.get(path.stem, -1))))
    return ImageFiles(items, class_ids)


def _read_ground_truth(path: Path, class_ids: Sequence[str]) -> dict[str, int]:
    index_of = {wnid: index for index, wnid in enumerate(class_ids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":  # the head of Kaggle's table
            continue
        label = words[1] if len(words) > 1 else ""
        index = int(label) if label.isdecimal() else index_of.get(label, -1)
        if not 0 <= index < len(class_ids):
            raise XCiTError(f"{path}, line {number}: {line!r} is no file name and class (index 0..999, or wnid)")
        labels[Path(words[0]).name] = index
    return labels
