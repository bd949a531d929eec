"""The interfaces between the engine and a task, and the division of a global batch among processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from xcit.errors import XCiTError

Reduce = Callable[[Tensor], Tensor]
"""A function that returns the sum of a tensor over all processes."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The division of a global batch into `num_parts` equal parts. Process k % world_size computes part k.

    In each step, a process computes its parts one after another, and then makes one optimiser step. Without
    `sync_batch_norm`, the gradients depend on the number of parts, but not on the number of processes: two processes
    with one part each compute the same gradients as one process with two parts.

    Attributes:
        batch_size: number of images in a global batch.
        rank: index of this process.
        world_size: number of processes.
        accumulation: number of parts that each process computes in a step.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    @property
    def num_parts(self) -> int:
        """Number of parts in a global batch."""
        return self.world_size * self.accumulation

    @property
    def part_size(self) -> int:
        """Number of images in a part, that is, in one forward pass."""
        return self.batch_size // self.num_parts

    def part(self, turn: int) -> int:
        """Returns the index (0..num_parts-1) of a part that this process computes.

        `turn` counts the parts that this process computes in a step, from 0 to accumulation-1.
        """
        return turn * self.world_size + self.rank

    def share(self, count: int) -> range:
        """Returns this process's indices among `count` items: every `world_size`-th index, starting at `rank`."""
        return range(self.rank, count, self.world_size)


ALONE = Layout(batch_size=1)
"""The layout of a single process, for the evaluation of all images in this process."""


def divide(batch_size: int, *, max_device_batch: int, rank: int = 0, world_size: int = 1) -> Layout:
    """Divides a batch into as few equal parts as possible, with at most `max_device_batch` images each (0: no limit).

    Raises:
        XCiTError: if the batch can't be divided equally among the processes.
    """
    if batch_size % world_size:
        raise XCiTError(
            f"a global batch of {batch_size} can't be divided among {world_size} processes: "
            f"set run.batch_size to a multiple of {world_size}"
        )
    share = batch_size // world_size
    limit = max_device_batch or share
    accumulation = next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= limit)
    return Layout(batch_size=batch_size, rank=rank, world_size=world_size, accumulation=accumulation)


class Task(Protocol):
    """A task: the model, data, loss and evaluation of a run. The engine adds the loop, the optimiser and the files.

    Attributes:
        model: the model to train.
        watch: name of the figure (result of the evaluation) that selects the best checkpoint: the checkpoint with the
            highest figure. "" if no checkpoint is selected.
    """

    model: nn.Module
    watch: str

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps per epoch."""

    @property
    def num_inputs(self) -> int:
        """Number of inputs (such as images) in the training data."""

    @property
    def unreadable(self) -> Sequence[str]:
        """One line for each input that this process has failed to read so far, without duplicates."""

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Yields this process's parts of an epoch's batches, starting at step `first_step`.

        The parts depend only on the seed, the epoch and the step.
        """

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns scalars by name. All scalars are logged, and the scalar "loss" is minimised."""

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        """Returns the figures, such as accuracy and loss, on the validation data, by name.

        Each input is counted once, and all processes get the same figures.
        """

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the weights, and all information that is needed to load and use the model."""


@runtime_checkable
class Closes(Protocol):
    """An optional interface of a task that must close resources, such as the processes that read its data."""

    def close(self) -> None:
        """Closes the resources.

        The engine calls this method at the end of a run, also after an error, and when processes that read data
        have died.
        """


@runtime_checkable
class StepHooks(Protocol):
    """An optional interface of a task: methods that the engine calls at each epoch and each step.

    A task needs these methods if its model has parts that are not trained by gradients, such as the teacher of DINO.
    `model` is the task's own model on the run's device, and not the DDP wrapper. The engine calls the methods in every
    process.
    """

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called when an epoch starts, or is resumed. The model is already in training mode."""

    def before_update(self, model: nn.Module, step: int) -> None:
        """Called after the gradients are clipped, before the optimiser's step.

        `step` is the index of the step in the run, counted from 0.
        """

    def after_update(self, model: nn.Module, step: int, reduce: Reduce) -> None:
        """Called after the optimiser's step, with the same `step` as in `before_update`."""

    def concerns(self, step: int, losses: dict[str, float]) -> Sequence[str]:
        """Returns warnings to print about a step. `losses` are the results of `loss`, averaged over all processes."""
