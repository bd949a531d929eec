"""When a layer may be computed from its weights instead of being called: where nobody could tell.

A layer that is called serves hooks, LoRA, quantisation, pruning, parametrisation and tracing. The direct forms
(`ops/forms.py`, LayerScale inside the weights) read weights, so they are taken only where every module involved is the
plain class and nothing listens.
"""

from torch import nn
from torch.nn.modules import module as _globals

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_LAYERS = (nn.Linear, nn.Conv2d)


def is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says: it has hooks, or another `forward` of its own."""
    return "forward" in module.__dict__ or any(getattr(module, name) for name in _HOOKS)


def is_anything_watched() -> bool:
    """Whether hooks are set for all modules, as profilers and counters do."""
    return any(getattr(_globals, name) for name in _GLOBAL_HOOKS)


def is_plain(*layers: nn.Module) -> bool:
    """Whether these are linear layers and convolutions of torch itself, with plain parameters, that nobody watches."""
    return not is_anything_watched() and all(
        type(layer) in _LAYERS
        and not is_watched(layer)
        and type(layer._parameters.get("weight")) is nn.Parameter
        and type(layer._parameters.get("bias")) in (nn.Parameter, type(None))
        for layer in layers
    )
