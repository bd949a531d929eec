"""Checks whether the output of a layer may be computed from the layer's weights, without calling the layer.

Hooks, LoRA, quantisation, pruning, parametrisation and tracing work only if the layer is called. Some faster forms of
the layers read the weights and do not call the layer. These forms are in `ops/forms.py`, and in `layers.py`, where
LayerScale multiplies the weights instead of the outputs. A faster form is used only if each layer is an instance of
torch's own class, not of a subclass, and has no hooks. So the user sees no difference. A parameter is called plain if
its class is `nn.Parameter` itself.
"""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules import module as _globals

_LAYERS = (nn.Linear, nn.Conv2d)


# The two functions below test each attribute in a separate expression. A loop over the names of the attributes would
# be shorter but slower, and a forward pass calls these functions dozens of times.


def is_watched(module: nn.Module) -> bool:
    """Returns whether a call of the module may differ from a call of its class's `forward`.

    This is the case if the module has hooks, or if its `forward` was replaced on the instance.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_anything_watched() -> bool:
    """Returns whether there are global hooks or an active dispatch mode, such as the mode of torch's FLOP counter."""
    return bool(
        _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
        or (not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack())
    )


def is_plain(*layers: nn.Module) -> bool:
    """Returns whether all layers are torch's own linear layers or convolutions, with plain parameters and no hooks."""
    if is_anything_watched():
        return False
    for layer in layers:
        if type(layer) not in _LAYERS or is_watched(layer):
            return False
        parameters = layer._parameters
        if type(parameters.get("weight")) is not nn.Parameter:
            return False
        if "bias" not in parameters or type(parameters["bias"]) not in (nn.Parameter, type(None)):
            return False
    return True


def is_all_plain(part: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Returns whether a module and its submodules have classes in `kinds`, plain parameters and no hooks.

    Subclasses of these classes are not accepted.
    """
    return not is_anything_watched() and all(
        type(module) in kinds
        and not is_watched(module)
        and all(type(value) in (nn.Parameter, type(None)) for value in module._parameters.values())
        for module in part.modules()
    )
