"""Prints in one line on standard error which model is used."""

from typing import TYPE_CHECKING

from xcit.cli.lines import say

if TYPE_CHECKING:
    from xcit.models import XCiT


def say_model(network: "XCiT", name: str | None, weights: str | None = None) -> None:
    """Prints which model is used and what it knows; the packaged model only knows garments.

    Args:
        network: the model.
        name: the name as given; None means the packaged model.
        weights: the file of its weights, if they are not those of the name.
    """
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo.names import find_record, is_known

    name = name or DEFAULT_MODEL
    record = find_record(name) if weights is None and is_known(name) else None
    known = [f"{network.num_classes} classes"] if network.num_classes else []
    if record is None:
        what = f" with the weights of {weights}" if weights else ""
    elif record.packaged:
        name, what = record.name, ", which only knows garments"
    else:
        name, what, known = record.name, "", [record.dataset, *known]
    counts = f" ({', '.join(known)})" if known else ""
    say(f"xcit: model {name}{what}{counts}", err=True, indent=2)
