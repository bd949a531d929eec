"""First values of a model whose memory is not set: built on the meta device, then given memory by `to_empty`."""

from typing import Any

from torch import nn


def reset_within(model: nn.Module) -> None:
    """Gives each module below a model its first values: parts before the modules that are made of them.

    A module of ours that has a say in the values of its parts has them in `_init_parts`; every other one has what it
    owns itself in `reset_parameters`, as torch's layers do.
    """
    for module in reversed([*model.modules()][1:]):
        reset: Any = getattr(module, "_init_parts", None) or getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
