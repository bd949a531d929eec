"""Averaged weights: how they are computed, and how much of the run's first weights they still contain."""

import math
from typing import TYPE_CHECKING

from torch import nn

from xcit.training.engine.config import RunConfig

if TYPE_CHECKING:
    import timm.utils

_MUCH = 0.1
"""If the result contains a larger share of the first weights than this, there is a warning."""

_LITTLE = 0.01
"""The share of the first weights that remains with the decay that the warning suggests."""


def build_average(model: nn.Module, run: RunConfig, *, is_sharded: bool) -> "timm.utils.ModelEmaV3 | None":
    """Returns the average of a model's weights and statistics, which begins as a copy; None if the run keeps none."""
    if not run.ema_decay:
        return None
    import timm.utils  # imported here, so that recipes can be read without the extra `train`

    return timm.utils.ModelEmaV3(model, decay=run.ema_decay, use_warmup=run.ema_warmup, foreach=not is_sharded)


def move_average(average: "timm.utils.ModelEmaV3", model: nn.Module, num_steps_done: int) -> None:
    """Updates the average after a step.

    Without a warm-up the decay is constant from the first step on, as in the authors' runs.
    """
    average.update(model, step=num_steps_done if average.use_warmup else None)


def describe_average(run: RunConfig, *, num_steps: int, num_epochs: int) -> list[str]:
    """Returns a line if the averaged weights consist largely of the first weights, at the end or for many epochs.

    Args:
        run: how to compute.
        num_steps: steps per epoch.
        num_epochs: epochs of the run.
    """
    if not run.ema_decay or run.ema_warmup:
        return []
    total = num_steps * num_epochs
    share = run.ema_decay**total
    if share > _MUCH:
        return [
            f"warning: the averaged weights, which are what is measured and kept, will still be {share:.0%} what the "
            f"run started from after its {total} steps (run.ema_decay {run.ema_decay:g}): set run.ema_warmup true, or "
            f"run.ema_decay {_LITTLE ** (1 / total):.3g}"
        ]
    half_life = math.log(0.5) / math.log(run.ema_decay)
    if half_life > num_steps * min(run.evaluate_every, num_epochs):
        return [
            f"until epoch {math.ceil(half_life / num_steps)} the figures are of averaged weights that are mostly what "
            f"the run started from (run.ema_decay {run.ema_decay:g}); run.ema_warmup true would measure them sooner"
        ]
    return []
