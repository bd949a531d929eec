"""The classes of the published data sets, in the order of the logits."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Class names, and the folder names or numbers that the data set's own files use instead, if they differ."""

    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


_LISTS = {"ADE20K": "ade20k_classes.txt", "CIFAR-10": "cifar10_classes.txt", "CIFAR-100": "cifar100_classes.txt"}


@cache
def classes_of(dataset: str) -> Classes:
    """Returns the classes of a data set, by its name in the records; empty if the data set is unknown."""
    if dataset == "ImageNet-1k":
        rows = _table("imagenet_classes.tsv")
        return Classes(names=tuple(name for _, name in rows), folders=tuple(wnid for wnid, _ in rows))
    if dataset in _LISTS:
        return Classes(names=tuple(_lines(_LISTS[dataset])))
    if dataset == "COCO":
        rows = _table("coco_classes.tsv")
        return Classes(names=tuple(name for _, name in rows), numbers=tuple(int(number) for number, _ in rows))
    return Classes()


def imagenet_class_ids() -> tuple[str, ...]:
    """Returns the 1000 wnids, sorted: the names of ImageNet's class folders."""
    return classes_of("ImageNet-1k").folders


def imagenet_class_names() -> tuple[str, ...]:
    """Returns a short English name for each of the 1000 classes."""
    return classes_of("ImageNet-1k").names


def ade20k_class_names() -> tuple[str, ...]:
    """Returns the names of ADE20K's 150 classes: name k belongs to value k + 1 in the data set's label images."""
    return classes_of("ADE20K").names


def coco_class_names() -> tuple[str, ...]:
    """Returns the names of COCO's 80 classes that detectors are trained on."""
    return classes_of("COCO").names


def coco_category_ids() -> tuple[int, ...]:
    """Returns the ids of these classes in COCO's own files, in the same order: 80 of the numbers from 1 to 90."""
    return classes_of("COCO").numbers


def _lines(name: str) -> list[str]:
    return files("xcit.zoo").joinpath(name).read_text(encoding="utf-8").splitlines()


def _table(name: str) -> list[tuple[str, str]]:
    return [(first, rest) for first, _, rest in (line.partition("\t") for line in _lines(name))]
