"""The optimiser with the published parameter groups, and the schedule of its weight decay."""

import math
from typing import Any

import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.training.engine.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW or SGD on what is not frozen; what is not decayed says `undecayed`.

    Args:
        model: with `layer_decay` below 1 it tells the order of its layers by a `group_matcher`, as timm's models do.
        config: the numbers. With `layer_decay` each group has an `lr_scale`, which the schedule multiplies in.

    Raises:
        XCiTError: if layers are to be told apart and the model does not say how, if it names no tokens where these are
            not to be decayed, or if nothing is left to train.
    """
    import timm.optim  # here, so that a recipe can be read without the extra `train`

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise XCiTError("every parameter is frozen: there is nothing left to train")
    if config.undecayed == "layer_norms":
        groups = _layer_norms_apart(model, config.weight_decay)
    elif config.layer_decay == 1:
        groups = timm.optim.param_groups_weight_decay(
            model, config.weight_decay, no_weight_decay_list=_tokens(model, config)
        )
    elif hasattr(model, "group_matcher"):
        groups = timm.optim.param_groups_layer_decay(
            model,
            config.weight_decay,
            no_weight_decay_list=_tokens(model, config),
            layer_decay=config.layer_decay,
        )
    else:
        raise XCiTError(
            f"optimizer.layer_decay is {config.layer_decay}, but a {type(model).__name__} does not tell the order of "
            "its layers (group_matcher): set it to 1"
        )
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _tokens(model: nn.Module, config: OptimizerConfig) -> set[str]:
    """Names of the parameters of more than one dimension that are not decayed."""
    if config.undecayed == "vectors":
        return set()
    named = getattr(model, "no_weight_decay", None)
    if named is None:
        raise XCiTError(
            f"optimizer.undecayed is vectors_and_tokens, but a {type(model).__name__} names no tokens "
            "(no_weight_decay): set it to vectors"
        )
    return set(named())


def _layer_norms_apart(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for parameter in module.parameters()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if id(parameter) in norms], "weight_decay": 0.0},
        {"params": [parameter for parameter in trained if id(parameter) not in norms], "weight_decay": weight_decay},
    ]


class WeightDecaySchedule:
    """The weight decay by step: call `step_update(number of steps done)` after each.

    Args:
        optimizer: its groups have their first weight decay; one of 0 stays 0.
        final: where half a cosine over the run takes the others; none leaves them.
        num_steps: of the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, final: float | None, num_steps: int) -> None:
        self._optimizer, self._final, self._num_steps = optimizer, final, num_steps
        self._first = [group["weight_decay"] for group in optimizer.param_groups]

    def step_update(self, num_steps_done: int) -> None:
        """Sets what the next step takes."""
        if self._final is None:
            return
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            if first:
                group["weight_decay"] = cosine(first, self._final, num_steps_done / self._num_steps)


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` at share 0 to `end` at share 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
