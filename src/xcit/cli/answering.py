"""Prints which model is used, as one line on standard error."""

from typing import Any

from xcit.cli.lines import say


def say_model(network: Any, name: str | None, weights: str | None = None) -> None:
    """Prints which model is used, its data set and its number of classes; see `model_sentence`.

    With several processes, only the process that prints the results calls this function.

    Args:
        network: the model.
        name: the name that the user gave; None means the packaged model.
        weights: the weights file that the user gave; None means the weights that belong to the name.
    """
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo.sentence import model_sentence

    say(f"xcit: model {model_sentence(network, name or DEFAULT_MODEL, weights)}", err=True, indent=2)
