"""Initialisation of a model that exists already.

For example, a model that was created on the meta device gets memory from `to_empty`, and then needs initial values.
"""

from typing import Any

from torch import nn


def reset_within(model: nn.Module) -> None:
    """Initialises all submodules of a model, but not the model itself.

    Inner modules are initialised before the modules that contain them. For each module, this function calls
    `_init_parts` if the module has this method, and otherwise `reset_parameters`. In this package, `_init_parts`
    initialises the submodules of a module. `reset_parameters` initialises a module's own parameters, as in torch's
    layers.
    """
    for module in reversed([*model.modules()][1:]):
        reset: Any = getattr(module, "_init_parts", None) or getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
