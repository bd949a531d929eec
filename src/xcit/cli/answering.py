"""Which model answered, said in one line on standard error."""

from typing import Any

from xcit.cli.lines import say


def say_model(network: Any, name: str | None, weights: str | None = None) -> None:
    """Says which model answered and what it knows; see `model_sentence`.

    Of several processes the one that tells the results calls it.

    Args:
        network: the model.
        name: as it was given; none is the packaged model.
        weights: the file that its weights are of, where that is not the name's own.
    """
    from xcit.inference.classify import DEFAULT_MODEL
    from xcit.zoo.sentence import model_sentence

    say(f"xcit: model {model_sentence(network, name or DEFAULT_MODEL, weights)}", err=True, indent=2)
