"""The 1000 classes of ImageNet-1k: wnids, in the order of the logits, and names."""

from functools import cache
from importlib.resources import files


@cache
def _table() -> tuple[tuple[str, str], ...]:
    lines = files("xcit.zoo").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, name) for wnid, _, name in (line.partition("\t") for line in lines))


def imagenet_class_ids() -> tuple[str, ...]:
    """The 1000 wnids, sorted: the names of ImageNet's class folders."""
    return tuple(wnid for wnid, _ in _table())


def imagenet_class_names() -> tuple[str, ...]:
    """A short English name for each of the 1000 classes."""
    return tuple(name for _, name in _table())
