"""Tests whether the output of a layer may be computed from its weights, without calling the layer.

Hooks, LoRA, quantisation, pruning, parametrisation and tracing work only if the layer is called. The direct forms
(`ops/forms.py`, LayerScale inside the weights) read the weights instead. The direct forms are used only if
every module involved has exactly torch's own class and no hooks, so that the user sees no difference.
"""

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.modules import module as _globals

_LAYERS = (nn.Linear, nn.Conv2d)


# These are written out instead of looping over names, because a forward pass calls them dozens of times.


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class defines: it has hooks, or `forward` was replaced on it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_anything_watched() -> bool:
    """Whether global hooks are set, or a dispatch mode sees every operation, as profilers and FLOP counters do."""
    return bool(
        _globals._global_forward_hooks
        or _globals._global_forward_pre_hooks
        or _globals._global_backward_hooks
        or _globals._global_backward_pre_hooks
        or (not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack())
    )


def is_plain(*layers: nn.Module) -> bool:
    """Whether all layers are torch's own linear layers or convolutions, with plain parameters and without hooks."""
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
    """Whether a module and all modules within it are exactly of these classes, with plain parameters and no hooks."""
    return not is_anything_watched() and all(
        type(module) in kinds
        and not is_watched(module)
        and all(type(value) in (nn.Parameter, type(None)) for value in module._parameters.values())
        for module in part.modules()
    )
