"""Builds the optimiser, chooses which parameters have weight decay, and schedules the weight decay."""

import math
from typing import Any

import torch
from torch import nn

from xcit.errors import XCiTError
from xcit.training.engine.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns AdamW or SGD for all parameters of a model that are not frozen.

    Args:
        model: the model to train. If `layer_decay` is below 1, the model must have a method `group_matcher`, which
            gives the order of the layers, as in timm's models.
        config: the settings. If `layer_decay` is below 1, each parameter group gets a factor `lr_scale`. The schedule
            multiplies the learning rate by this factor.

    Raises:
        XCiTError: if every parameter is frozen, or if the settings need a method `group_matcher` or `no_weight_decay`
            that the model does not have.
    """
    import timm.optim  # imported here, so that recipes can be read without the extra `train`

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
            f"optimizer.layer_decay is {config.layer_decay}, but a {type(model).__name__} has no method group_matcher, "
            "which gives the order of its layers: set optimizer.layer_decay to 1"
        )
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _tokens(model: nn.Module, config: OptimizerConfig) -> set[str]:
    """Returns the names of the parameters that have no weight decay, although they have more than one dimension."""
    if config.undecayed == "vectors":
        return set()
    named = getattr(model, "no_weight_decay", None)
    if named is None:
        raise XCiTError(
            f"optimizer.undecayed is vectors_and_tokens, but a {type(model).__name__} has no method no_weight_decay, "
            "which gives the names of the tokens: set optimizer.undecayed to vectors"
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
    """Schedule of the weight decay. Call `step_update(number of finished steps)` after each step.

    Args:
        optimizer: the optimiser, with the initial weight decay in its parameter groups. A weight decay of 0 stays 0.
        final: weight decay at the end of the run, reached along half a period of a cosine. None keeps the initial
            values.
        num_steps: number of steps of the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, final: float | None, num_steps: int) -> None:
        self._optimizer, self._final, self._num_steps = optimizer, final, num_steps
        self._first = [group["weight_decay"] for group in optimizer.param_groups]

    def step_update(self, num_steps_done: int) -> None:
        """Sets the weight decay of the next step."""
        if self._final is None:
            return
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            if first:
                group["weight_decay"] = cosine(first, self._final, num_steps_done / self._num_steps)


def cosine(start: float, end: float, share: float) -> float:
    """Interpolates from `start` (at `share` 0) to `end` (at `share` 1) along half a period of a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))
