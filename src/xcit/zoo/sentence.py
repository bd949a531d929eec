"""Which model it is, in a few words: what people are told beside its answers."""

import os
from typing import Any

from xcit.zoo.names import find_record, is_known


def model_sentence(model: Any, name: str | os.PathLike[str], weights: str | None = None) -> str:
    """A model's name and what it knows, and of the packaged one that it only knows garments.

    Args:
        model: of any kind, with its number of classes.
        name: of the zoo, or a file or URL.
        weights: the file that its weights are of, where that is not the name's own.
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
