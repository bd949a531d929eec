"""Initialises a model that was built on the meta device and then got memory from `to_empty`."""

from typing import Any

from torch import nn


def reset_within(model: nn.Module) -> None:
    """Initialises each module within a model, inner modules before the modules that contain them.

    Some modules of this package initialise their submodules in a method `_init_parts`. Any other module initialises
    its own parameters in `reset_parameters`, as torch's layers do.
    """
    for module in reversed([*model.modules()][1:]):
        reset: Any = getattr(module, "_init_parts", None) or getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
