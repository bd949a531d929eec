"""Detects a collapse in training without labels: the outputs of a model become the same for all images."""

import math
from collections import deque
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

_WINDOW = 50
"""The number of steps over which the measured values are averaged, because a few steps may look like a collapse."""

_SMALLEST_SPREAD = 0.05
"""If the spread of the features is at most this number, the run has collapsed.

The features of an untrained network have a spread of about 0.3. In a trained network, the spread is larger.
"""

_SMALLEST_DIVERGENCE = 0.01
"""If the divergence between teacher and student is at most this fraction of the maximum entropy, the run has collapsed.

In the DINO paper, the divergence goes to 0 in the runs that collapse (arXiv 2104.14294, figure 7).
"""


def feature_spread(features: Tensor) -> Tensor:
    """Returns the spread of features (B, D): 0 if all features have the same direction, 1 if directions are uniform.

    The features are scaled to length 1. For each of the D entries, the standard deviation over the images is computed.
    The spread is the mean of these standard deviations, times sqrt(D) (arXiv 2011.10566, section 4.1).
    """
    unit = F.normalize(features, dim=-1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5


class CollapseWatch:
    """Watches the values of every step, and warns when their averages over the last steps show a collapse.

    There is one warning at the start of a collapse, and no other warning until the collapse has ended.
    """

    def __init__(self, num_outputs: int) -> None:
        self._largest_entropy = math.log(num_outputs)
        self._steps: deque[Mapping[str, float]] = deque(maxlen=_WINDOW)
        self._has_warned = False

    def look(self, step: int, losses: Mapping[str, float]) -> list[str]:
        """Adds the values of a step, and returns a warning if a collapse has begun.

        Args:
            step: index of the step in the run, counted from 0.
            losses: contains "teacher_entropy" and "teacher_student_kl" (nats) and "feature_spread".
        """
        self._steps.append(losses)
        if len(self._steps) < _WINDOW:
            return []
        problem = self._problem()
        is_new = bool(problem) and not self._has_warned
        self._has_warned = bool(problem)
        return [f"warning: collapse: over the last {_WINDOW} steps, to step {step + 1}, {problem}"] if is_new else []

    def _mean(self, name: str) -> float:
        return sum(losses[name] for losses in self._steps) / len(self._steps)

    def _problem(self) -> str:
        """Returns a line about the problem and possible remedies, or "" if there is no problem."""
        entropy, divergence, spread = map(self._mean, ("teacher_entropy", "teacher_student_kl", "feature_spread"))
        if divergence > _SMALLEST_DIVERGENCE * self._largest_entropy:
            if spread > _SMALLEST_SPREAD:
                return ""
            return (
                f"the teacher's features were nearly the same for all images (spread {spread:.3f} of 1): try a lower "
                "optimizer.lr or more schedule.warmup_epochs"
            )
        told = f"teacher and student gave the same output for all images (divergence {divergence:.3f} nats); "
        if entropy > self._largest_entropy / 2:
            return told + (
                f"the output was nearly uniform (entropy {entropy:.2f} of {self._largest_entropy:.2f}): try a lower "
                "dino.teacher_temperature"
            )
        return told + f"few entries dominated the output (entropy {entropy:.2f}): try a lower dino.center_momentum"
