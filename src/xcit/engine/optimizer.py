"""AdamW with the published parameter groups, and the schedule of its learning rate."""

import timm.optim
import timm.scheduler
import torch
from torch import nn

from xcit.engine.config import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; biases and one-dimensional parameters are not decayed."""
    groups = timm.optim.param_groups_weight_decay(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int
) -> timm.scheduler.CosineLRScheduler:
    """The learning rate by step: call `step_update(number of steps done)` after each."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    return timm.scheduler.CosineLRScheduler(
        optimizer,
        t_initial=max(config.epochs * steps_per_epoch - warmup_steps, 1),
        lr_min=config.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
