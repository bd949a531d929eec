"""Sets the first values of a model that was built on the meta device and then given memory by `to_empty`."""

from typing import Any

from torch import nn


def reset_within(model: nn.Module) -> None:
    """Sets the first values of each module within a model, inner modules before the modules that contain them.

    A module of ours that initialises the parts within it does so in `_init_parts`. Any other module initialises its own
    parameters in `reset_parameters`, as torch's layers do.
    """
    for module in reversed([*model.modules()][1:]):
        reset: Any = getattr(module, "_init_parts", None) or getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
