"""The 150 classes of ADE20K's scene parsing benchmark."""

from functools import cache
from importlib.resources import files


@cache
def ade20k_class_names() -> tuple[str, ...]:
    """Their names, in the order of the logits: name k is value k + 1 of the data set's label images."""
    return tuple(files("xcit.zoo").joinpath("ade20k_classes.txt").read_text(encoding="utf-8").splitlines())
