"""Describes a model in a few words, to print next to its outputs."""

import os
from typing import Any

from xcit.zoo.names import find_record, is_known


def model_sentence(model: Any, name: str | os.PathLike[str], weights: str | None = None) -> str:
    """Returns a model's name, data set and number of classes; for the packaged model also that it knows only garments.

    Args:
        model: a model of any kind; its number of classes is used.
        name: a name in the zoo, or a file or URL.
        weights: the file of its weights; None means the weights that belong to the name.
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
