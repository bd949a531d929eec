"""Prints in one line on standard error which model is used."""

from typing import Any

from xcit.cli.lines import say


def say_model(network: Any, name: str | None, weights: str | None = None) -> None:
    """Prints which model is used and what it knows; see `model_sentence`.

    If there are several processes, only the one that prints the results calls it.


    Args:
        network: the model.
        name: the name as given; None means the packaged model.
        weights: the file of its weights, if they are not those of the name.
    """
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo.sentence import model_sentence

    say(f"xcit: model {model_sentence(network, name or DEFAULT_MODEL, weights)}", err=True, indent=2)
