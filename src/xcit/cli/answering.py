"""Which model answered, said in one line on standard error."""

from typing import Any

from xcit.cli.lines import say
from xcit.cli.processes import is_main


def say_model(network: Any, name: str | None, weights: str | None = None) -> None:
    """Says which model answered and what it knows, where this process speaks for all; see `model_sentence`.

    Args:
        network: the model.
        name: as it was given; none is the packaged model.
        weights: the file that its weights are of, where that is not the name's own.
    """
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo.sentence import model_sentence

    if is_main():
        say(f"xcit: model {model_sentence(network, name or DEFAULT_MODEL, weights)}", err=True, indent=2)
