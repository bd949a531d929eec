"""The 80 classes of COCO that detectors are trained on."""

from functools import cache
from importlib.resources import files


@cache
def _table() -> tuple[tuple[int, str], ...]:
    lines = files("xcit.zoo").joinpath("coco_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple((int(number), name) for number, _, name in (line.partition("\t") for line in lines))


def coco_class_names() -> tuple[str, ...]:
    """Their names, in the order of the labels."""
    return tuple(name for _, name in _table())


def coco_category_ids() -> tuple[int, ...]:
    """Their ids in COCO's own files, in the same order: 80 of the numbers from 1 to 90."""
    return tuple(number for number, _ in _table())
