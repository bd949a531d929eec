"""The moving average of the weights, and a warning if the initial weights are still a large share of the average."""

import math
from typing import TYPE_CHECKING

from torch import nn

from xcit.training.engine.config import RunConfig

if TYPE_CHECKING:
    import timm.utils

_MUCH = 0.1
"""The user gets a warning if the share (0..1) of the initial weights in the final average is above this number."""

_LITTLE = 0.01
"""Share (0..1) of the initial weights in the final average, if the run uses the decay that the warning suggests."""


def build_average(model: nn.Module, run: RunConfig, *, is_sharded: bool) -> "timm.utils.ModelEmaV3 | None":
    """Returns the moving average of a model's weights and batch-norm statistics; None if the run has no average.

    At the start, the average is a copy of the model.
    """
    if not run.ema_decay:
        return None
    import timm.utils  # imported here, so that recipes can be read without the extra `train`

    return timm.utils.ModelEmaV3(model, decay=run.ema_decay, use_warmup=run.ema_warmup, foreach=not is_sharded)


def move_average(average: "timm.utils.ModelEmaV3", model: nn.Module, num_steps_done: int) -> None:
    """Updates the average after a step.

    If `ema_warmup` is off, the decay is constant from the first step on, as in the authors' runs.
    """
    average.update(model, step=num_steps_done if average.use_warmup else None)


def describe_average(run: RunConfig, *, num_steps: int, num_epochs: int) -> list[str]:
    """Returns a message for the user if the initial weights keep a large share in the average for many steps.

    The share of the initial weights in the average decreases with each step. If the share is still large at the end of
    the run, the message is a warning. Otherwise, if the share is above one half at the first evaluation, the message
    says in which epoch the share falls to one half.

    Args:
        run: the settings of the run, with `ema_decay`.
        num_steps: number of steps per epoch.
        num_epochs: number of epochs of the run.

    Returns:
        A list with the message (one line), or an empty list if there is nothing to report.
    """
    if not run.ema_decay or run.ema_warmup:
        return []
    total = num_steps * num_epochs
    share = run.ema_decay**total
    if share > _MUCH:
        return [
            f"warning: the averaged weights are evaluated and exported, but after the {total} steps of this run, "
            f"{share:.0%} of the average will still be the initial weights (run.ema_decay {run.ema_decay:g}): set "
            f"run.ema_warmup true, or run.ema_decay {_LITTLE ** (1 / total):.3g}"
        ]
    half_life = math.log(0.5) / math.log(run.ema_decay)
    if half_life > num_steps * min(run.evaluate_every, num_epochs):
        return [
            f"until epoch {math.ceil(half_life / num_steps)}, the evaluated weights are an average that still "
            f"consists mostly of the initial weights (run.ema_decay {run.ema_decay:g}); run.ema_warmup true avoids this"
        ]
    return []
