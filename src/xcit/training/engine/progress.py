"""What a run says of itself while it runs, and when it was stopped."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: reported every few steps, and with figures after each evaluation.

    Attributes:
        epoch: from 0.
        num_epochs: of the run.
        step: steps done of this epoch.
        num_steps: of an epoch.
        loss: the last step's, over all processes; with figures the epoch's mean.
        lr: learning rate.
        images_per_second: over all processes, since the start or the epoch's begin, whichever is later.
        data_wait: share of that time that this process waited for data, 0..1.
        figures: of an evaluation.
    """

    epoch: int
    num_epochs: int
    step: int
    num_steps: int
    loss: float
    lr: float
    images_per_second: float
    data_wait: float
    figures: dict[str, float] | None = None


class Stopped(Exception):  # noqa: N818 - no error: the run did what it was asked to
    """A signal stopped the run after it had saved.

    Attributes:
        checkpoint: from which it can go on.
        signal: the signal's name.
    """

    def __init__(self, checkpoint: Path, signal: str) -> None:
        super().__init__(f"stopped by {signal}; saved in {checkpoint}")
        self.checkpoint, self.signal = checkpoint, signal
