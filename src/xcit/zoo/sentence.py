"""Describes a model in a few words, which are printed next to its outputs."""

import os
from typing import Any

from xcit.zoo.names import find_record, is_known


def model_sentence(model: Any, name: str | os.PathLike[str], weights: str | None = None) -> str:
    """Returns a description of a model, such as "xcit-nano-12-p16_3rdparty_in1k (ImageNet-1k, 1000 classes)".

    For the packaged model, the description also says that the model only knows garments.

    Args:
        model: the model, of any kind; its number of classes is used.
        name: its published name, or its file or URL.
        weights: the file with its weights, if the user gave one besides the name; else None.
    """
    name = os.fspath(name)
    record = find_record(name) if weights is None and is_known(name) else None
    known = [f"{model.num_classes} classes"] if model.num_classes else []
    if record is None:
        what = f" with the weights of {weights}" if weights else ""
    elif record.packaged:
        name, what = record.name, ", which only knows garments"
    else:
        name, what, known = record.name, "", [record.dataset, *known]
    counts = f" ({', '.join(known)})" if known else ""
    return f"{name}{what}{counts}"
