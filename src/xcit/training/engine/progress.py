"""The progress that a run reports, and the exception when it was stopped."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run, reported every few steps, and with figures after each evaluation.

    Attributes:
        epoch: current epoch, from 0.
        num_epochs: number of epochs of the run.
        step: number of finished steps of this epoch.
        num_steps: number of steps of an epoch.
        loss: loss of the last step, over all processes; with figures, the mean of the epoch.
        lr: learning rate.
        images_per_second: speed over all processes, since the start of the run or of the epoch, whichever is later.
        data_wait: fraction of that time in which this process waited for data, 0..1.
        figures: results of an evaluation.
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


class Stopped(Exception):  # noqa: N818 - not an error: a stop was requested
    """Raised when a signal has stopped the run and its state has been saved.

    Attributes:
        checkpoint: the checkpoint to resume from.
        signal: name of the signal.
    """

    def __init__(self, checkpoint: Path, signal: str) -> None:
        super().__init__(f"stopped by {signal}; saved in {checkpoint}")
        self.checkpoint, self.signal = checkpoint, signal
