"""Schedules of the learning rate. They need timm, so this module is imported only when a run begins."""

import timm.scheduler
import timm.scheduler.scheduler
import torch

from xcit.training.engine.config import ScheduleConfig


class _Cosine(timm.scheduler.CosineLRScheduler):
    """timm's cosine schedule. The learning rate changes only after every `steps_at_once` steps."""

    steps_at_once = 1

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        super().step_update(num_updates // self.steps_at_once * self.steps_at_once, metric)


class _UnderWarmup(timm.scheduler.scheduler.Scheduler):
    """A decreasing learning rate, which is multiplied by a factor that rises to 1 during the warm-up."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int, warmup_steps: int
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self._config, self._steps_per_epoch, self._warmup_steps = config, steps_per_epoch, warmup_steps

    def _get_lr(self, t: int) -> list[float]:
        config = self._config
        if config.by_epoch:
            t -= t % self._steps_per_epoch
        return [self._regular(lr, t) * self._factor(lr, t) for lr in self.base_values]

    def _regular(self, lr: float, step: int) -> float:
        config = self._config
        if config.kind == "milestones":
            epoch = step // self._steps_per_epoch
            return lr * float(config.decay ** sum(epoch >= milestone for milestone in config.milestones))
        share = min(step / (config.epochs * self._steps_per_epoch), 1.0)
        return float(config.min_lr + (lr - config.min_lr) * (1 - share))

    def _factor(self, lr: float, step: int) -> float:
        if step >= self._warmup_steps or lr == 0:
            return 1.0
        first = self._config.warmup_lr / lr
        return first + (1 - first) * step / self._warmup_steps


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, steps_per_epoch: int
) -> timm.scheduler.scheduler.Scheduler:
    """Returns the schedule of the learning rate. Call `step_update(number of finished steps)` after each step."""
    warmup_steps = config.warmup_steps or config.warmup_epochs * steps_per_epoch
    if config.kind != "cosine":
        return _UnderWarmup(optimizer, config, steps_per_epoch, warmup_steps)
    schedule = _Cosine(
        optimizer,
        t_initial=max(config.epochs * steps_per_epoch - warmup_steps, 1),
        lr_min=config.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    if config.by_epoch:
        schedule.steps_at_once = steps_per_epoch
    return schedule
