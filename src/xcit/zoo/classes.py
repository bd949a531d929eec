"""The classes of the published data sets, in the order of the logits."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: English names; empty if the data set is unknown.
        folders: names of the class folders if they differ from `names`, else empty.
        numbers: the class numbers in the data set's own files if they are not the indices of `names`, else empty.
    """

    names: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


_LISTS = {"ADE20K": "ade20k_classes.txt", "CIFAR-10": "cifar10_classes.txt", "CIFAR-100": "cifar100_classes.txt"}


@cache
def classes_of(dataset: str) -> Classes:
    """Returns the classes of a data set, such as "ImageNet-1k"; all fields are empty if the data set is unknown."""
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
    """Returns the sorted names of ImageNet's 1000 class folders (WordNet ids, such as "n01440764")."""
    return classes_of("ImageNet-1k").folders


def imagenet_class_names() -> tuple[str, ...]:
    """Returns a short English name for each of ImageNet's 1000 classes, in the order of `imagenet_class_ids`."""
    return classes_of("ImageNet-1k").names


def ade20k_class_names() -> tuple[str, ...]:
    """Returns the names of ADE20K's 150 classes. The class at index k has the value k + 1 in ADE20K's label images."""
    return classes_of("ADE20K").names


def coco_class_names() -> tuple[str, ...]:
    """Returns the names of the 80 COCO classes on which detectors are trained."""
    return classes_of("COCO").names


def coco_category_ids() -> tuple[int, ...]:
    """Returns the ids (from 1 to 90) of the 80 classes in COCO's own files, in the order of `coco_class_names`."""
    return classes_of("COCO").numbers


def _lines(name: str) -> list[str]:
    return files("xcit.zoo").joinpath(name).read_text(encoding="utf-8").splitlines()


def _table(name: str) -> list[tuple[str, str]]:
    return [(first, rest) for first, _, rest in (line.partition("\t") for line in _lines(name))]
