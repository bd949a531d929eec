"""The progress that a run reports, and the exception for a run that was stopped by a signal."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run. It is reported every few steps and after each evaluation.

    Attributes:
        epoch: index of the current epoch, counted from 0.
        num_epochs: number of epochs of the run.
        step: number of finished steps of this epoch.
        num_steps: number of steps per epoch.
        loss: loss of the last step, averaged over all processes. After an evaluation: mean loss of the epoch.
        lr: learning rate of the next step.
        images_per_second: images per second of all processes together, since this epoch started or was resumed.
        data_wait: fraction (0..1) of the time that this process waited for data, since this epoch started or was
            resumed.
        figures: results of the evaluation, by name; None if the report does not follow an evaluation.
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
    """Raised after a signal has stopped the run and the state of the run has been saved.

    Attributes:
        checkpoint: the checkpoint to resume from.
        signal: name of the signal, or "another process's signal".
    """

    def __init__(self, checkpoint: Path, signal: str) -> None:
        super().__init__(f"stopped by {signal}; saved in {checkpoint}")
        self.checkpoint, self.signal = checkpoint, signal
