"""Opens labelled images: class folders (one folder per class), the layouts of ImageNet, and named data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from PIL import Image

from xcit.data.label_lists import CLASS_FILES, LIST_NAMES, find_list, has_validation_list, known_classes, read_list
from xcit.data.named import FASHION_MNIST_CLASSES, Split, open_cifar, open_fashion_mnist
from xcit.data.splits import find_splits, left_out, subfolders
from xcit.data.streams import is_stream
from xcit.errors import XCiTError, some_of
from xcit.images.find import images_below, is_image_name
from xcit.images.passed_by import PassedBy
from xcit.images.read import read_image
from xcit.zoo.classes import imagenet_class_ids

KNOWN_DATA = (
    "a folder of images by class, 'fashion-mnist', 'cifar10', 'cifar100', 'hf:NAME', or a stream: 'hf-stream:NAME' or "
    "'wds:PATTERN'"
)

GROUND_TRUTH_FILES = ("val.txt", "ILSVRC2012_val.txt", "LOC_val_solution.csv")
"""Possible names of the file with the labels of ImageNet's validation images, if the images have no class folders.

Each line of the file has the name of an image and a class, which is an index or a wnid (WordNet id, such as n01440764).
`LOC_val_solution.csv` is Kaggle's table of these labels.
"""


_SHOWN = 5
"""Number of class names that are listed in a message."""


class LabelledImages(Protocol):
    """A list of images with class indices."""

    @property
    def class_ids(self) -> tuple[str, ...]:
        """The names of the classes in the data set, in the order of the labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...

    def image_name(self, index: int) -> str:
        """Returns the name of an image for messages."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files with labels.

    Attributes:
        items: paths of the image files, each with its label (a class index).
        class_ids: names of the classes, in the order of the labels.
        source: path of the folder or of the list in which the images were found.
        problems: one message for each kind of file or folder that was left out.
    """

    items: Sequence[tuple[Path, int]]
    class_ids: tuple[str, ...]
    source: str = ""
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.items[index]
        return read_image(path), label

    def image_name(self, index: int) -> str:
        return str(self.items[index][0])


@dataclass(frozen=True)
class KnownImages:
    """One split of a torchvision data set; the split "val" has the test images of the data set."""

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
    """The images of a data set at the given indices."""

    images: LabelledImages
    indices: Sequence[int]

    @property
    def class_ids(self) -> tuple[str, ...]:
        return self.images.class_ids

    @property
    def source(self) -> str:
        """The path where the data set was found; "" if the data set has no path."""
        return getattr(self.images, "source", "")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[self.indices[index]]

    def image_name(self, index: int) -> str:
        return self.images.image_name(self.indices[index])


def open_labelled_images(data: str, split: Split) -> LabelledImages:
    """Opens one split of a data set.

    Args:
        data: one of the following. If a folder contains only one folder, the inner folder is used instead.

            - "fashion-mnist", "cifar10" or "cifar100".
            - `hf:NAME`: a data set of the Hugging Face Hub or a folder of Parquet files, see `open_hub_images`.
            - A folder with files `<split>/<class>/<image>`. In ImageNet, the splits are train and val, and the classes
              are wnids. `SPLIT_NAMES` lists the accepted names of splits.
            - A folder with files `<class>/<image>`.
            - A folder of images with a list of their labels, see `read_list`.
            - A folder with ImageNet's validation images and no class folders. One of `GROUND_TRUTH_FILES` must be in
              this folder, in its parent folder, or in the folder `meta` of its parent folder, as in mmpretrain.
        split: the split to open; "val" is the split for evaluation. If a folder has no splits, "train" and "val" are
            the same images.

    Raises:
        XCiTError: if the data set or folder does not exist, or has no images or no labels; or if `data` is a stream.
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
        raise XCiTError(f"{data}: no such folder; data must be {KNOWN_DATA}")
    splits = find_splits(root)
    place = splits.of(split)
    problems = [f"{splits.root}: the folder {name} is not read: it is not a split" for name in splits.unused]
    classes = known_classes(splits.root, place)
    passed_by = PassedBy(known=LIST_NAMES)
    by_class = {entry.name: images_below(entry, passed_by) for entry in subfolders(place, passed_by)}
    beside = list[Path]()
    for file in sorted(entry for entry in place.iterdir() if not entry.is_dir()):
        if is_image_name(file):
            beside.append(file)
        else:
            passed_by.add(file)
    # If there is a list of labels, at most one of the subfolders contains images.
    if sum(map(bool, by_class.values())) <= 1:
        path = find_list(splits.root, place, split)
        if path is not None:
            listed = read_list(path, place, classes)
            return ImageFiles(listed.items, listed.class_ids, str(path), (*problems, *listed.problems))
        if split == "val" and beside and not any(by_class.values()):
            return _flat_imagenet(place)
    if beside:
        problems.append(
            f"{place}: {len(beside)} images left out: they are not in class folders, so their class is unknown"
        )
    problems += left_out(place, passed_by)
    images = _class_folders(place, by_class, problems, is_part=split == "val" and splits.has_val)
    return _in_order_of(classes, images) if classes else images


def has_validation(data: str) -> bool:
    """Returns whether a data set for `open_labelled_images` has validation images in addition to training images.

    For data that are not a folder, returns True.
    """
    root = Path(data)
    if not root.is_dir():
        return True
    splits = find_splits(root)
    return splits.has_val or has_validation_list(splits.root)


def is_folder_without_validation(data: str) -> bool:
    """Returns whether `data` is a folder without separate validation images.

    For such a folder, `open_labelled_images` returns the training images also for the split "val".
    """
    return Path(data).is_dir() and not has_validation(data)


def describe_classes(images: LabelledImages) -> str:
    """Returns one line: the number of classes, the first class names, and the number and the path of the images."""
    names = images.class_ids
    where = getattr(images, "source", "")
    return f"{len(names)} classes: {some_of(names, _SHOWN)}; {len(images)} images{f' in {where}' if where else ''}"


def problems_of(images: LabelledImages) -> tuple[str, ...]:
    """Returns the messages about files and folders that were left out of the data set."""
    return tuple(getattr(images, "problems", ()))


def with_classes(images: LabelledImages, class_ids: Sequence[str], labels: Sequence[int]) -> LabelledImages:
    """Returns the same images with the classes `class_ids`; `labels[k]` is the new label for the old label k."""
    if isinstance(images, ImageFiles):
        return replace(
            images, items=[(path, labels[label]) for path, label in images.items], class_ids=tuple(class_ids)
        )
    return _Relabelled(images, tuple(labels), tuple(class_ids))


def measured_by(images: LabelledImages, class_ids: tuple[str, ...], data: str) -> tuple[LabelledImages, str]:
    """Gives validation images the labels of the training classes; the classes are matched by name.

    Args:
        images: the validation images.
        class_ids: names of the training classes.
        data: path of the validation images, for messages.

    Returns:
        The images, and a message about training classes without validation images ("" if there are no such classes).

    Raises:
        XCiTError: if a validation image has a class that is not a training class.
    """
    if images.class_ids == class_ids:
        return images, ""
    index_of = {name: index for index, name in enumerate(class_ids)}
    unknown = [name for name in images.class_ids if name not in index_of]
    if unknown:
        raise XCiTError(
            f"{data}: the training and the validation images have different classes: {_some(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among the {len(class_ids)} training classes, "
            f"{_some(class_ids)}"
        )
    found = set(images.class_ids)
    missing = [name for name in class_ids if name not in found]
    line = f"{data}: no validation images for {len(missing)} of the {len(class_ids)} classes: {_some(missing)}"
    return with_classes(images, class_ids, [index_of[name] for name in images.class_ids]), line if missing else ""


def _some(names: Sequence[str]) -> str:
    return some_of(map(repr, names), _SHOWN)


@dataclass(frozen=True)
class _Relabelled:
    """Images with replaced labels and classes: `labels[k]` is the new label for the old label k."""

    images: LabelledImages
    labels: tuple[int, ...]
    class_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, self.labels[label]

    @property
    def source(self) -> str:
        return getattr(self.images, "source", "")

    @property
    def problems(self) -> tuple[str, ...]:
        return problems_of(self.images)

    def image_name(self, index: int) -> str:
        return self.images.image_name(index)


def _class_folders(
    root: Path, by_class: Mapping[str, Sequence[Path]], problems: Sequence[str], *, is_part: bool
) -> ImageFiles:
    """Returns the images of class folders. If `is_part` is true, some folders may be empty, as in validation images."""
    empty = [name for name, images in by_class.items() if not images]
    if len(empty) == len(by_class):
        raise XCiTError(f"{root}: no images by class: expected a folder for each class, with images in it")
    if empty and not is_part:
        raise XCiTError(f"{root}: no images of class {empty[0]!r}; remove the empty folder or fill it")
    names = tuple(name for name in by_class if name not in empty)
    items = [(path, label) for label, name in enumerate(names) for path in by_class[name]]
    return ImageFiles(items, names, str(root), tuple(problems))


def _in_order_of(classes: Sequence[str], images: ImageFiles) -> ImageFiles:
    """Changes the labels so that the classes are in the order of `classes`, which are the lines of a class file.

    The name of a class is either the whole line or the first word of the line.
    """
    first_words = [line.split()[0] for line in classes]
    names = first_words if set(images.class_ids) <= set(first_words) else list(classes)
    unknown = [name for name in images.class_ids if name not in names]
    if unknown:
        raise XCiTError(f"{images.source}: the data set's {' or '.join(CLASS_FILES)} does not contain {_some(unknown)}")
    labels = [names.index(name) for name in images.class_ids]
    return replace(images, items=[(path, labels[label]) for path, label in images.items], class_ids=tuple(names))


def _flat_imagenet(root: Path) -> ImageFiles:
    passed_by = PassedBy(known=GROUND_TRUTH_FILES)
    images = images_below(root, passed_by)
    places = [folder / name for folder in (root, root.parent, root.parent / "meta") for name in GROUND_TRUTH_FILES]
    ground_truth = next((place for place in places if place.is_file()), None)
    if ground_truth is None:
        raise XCiTError(
            f"{root}: images without class folders need a file {GROUND_TRUTH_FILES[0]} with their labels, in the same "
            "folder or its parent; each line has a file name and a class (index from 0, or wnid)"
        )
    class_ids = imagenet_class_ids()
    labels = _read_ground_truth(ground_truth, class_ids)
    items = []
    for path in images:
        if path.name not in labels and path.stem not in labels:
            raise XCiTError(f"{ground_truth}: no label for {path.name}")
        items.append((path, labels.get(path.name, labels.get(path.stem, -1))))
    return ImageFiles(items, class_ids, str(root), tuple(left_out(root, passed_by)))


def _read_ground_truth(path: Path, class_ids: Sequence[str]) -> dict[str, int]:
    index_of = {wnid: index for index, wnid in enumerate(class_ids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[0] == "ImageId":  # an empty line, or the header of Kaggle's table
            continue
        label = words[1] if len(words) > 1 else ""
        index = int(label) if label.isdecimal() else index_of.get(label, -1)
        if not 0 <= index < len(class_ids):
            raise XCiTError(f"{path}, line {number}: {line!r} is not a file name and a class (index 0..999, or wnid)")
        labels[Path(words[0]).name] = index
    return labels
