"""Checks, before any download, that the user's folders contain the data sets of the published figures."""

from collections.abc import Callable, Sequence

from xcit.data.classification import is_folder_without_validation, open_labelled_images
from xcit.data.coco import open_coco
from xcit.data.segmentation import open_scenes
from xcit.errors import XCiTError
from xcit.zoo.classes import ade20k_class_names, classes_of, coco_class_names, imagenet_class_ids


def check_data(dataset: str, data: str) -> int:
    """Opens the validation split of a data set, and returns its number of images.

    Raises:
        XCiTError: if there is no validation split, or if its folders or classes do not match the data set.
    """
    return _CHECKS[dataset](data)


def _check_classes(data: str, dataset: str, found: Sequence[str], known: Sequence[str]) -> None:
    """Checks that every class in the folder is a class of the data set; classes may be missing."""
    if other := [name for name in found if name not in set(known)]:
        raise XCiTError(f"{data} is not {dataset}: it has other classes, for example {other[0]!r}")


def _imagenet(data: str) -> int:
    if is_folder_without_validation(data):
        raise XCiTError(f"{data} is not ImageNet: it has no folder val")
    images = open_labelled_images(data, "val")
    _check_classes(data, "ImageNet", images.class_ids, imagenet_class_ids())
    return len(images)


def _cifar(dataset: str) -> Callable[[str], int]:
    def check(data: str) -> int:
        images = open_labelled_images(data, "val")
        _check_classes(data, dataset, images.class_ids, classes_of(dataset).names)
        return len(images)

    return check


def _coco(data: str) -> int:
    images = open_coco(data, "val")
    if tuple(images.class_names) != coco_class_names():
        raise XCiTError(f"{data} is not COCO: its {len(images.class_names)} classes are not COCO's 80")
    return len(images)


def _ade20k(data: str) -> int:
    scenes = open_scenes(data, "val")
    if tuple(scenes.class_names) != ade20k_class_names():
        raise XCiTError(f"{data} is not ADE20K: its {len(scenes.class_names)} classes are not ADE20K's 150")
    return len(scenes)


_CHECKS: dict[str, Callable[[str], int]] = {
    "ImageNet-1k": _imagenet,
    "COCO": _coco,
    "ADE20K": _ade20k,
    "CIFAR-10": _cifar("CIFAR-10"),
    "CIFAR-100": _cifar("CIFAR-100"),
}
