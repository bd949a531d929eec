"""The protocol between the engine and the task that it trains, and how a global batch is divided among processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from xcit.errors import XCiTError

Reduce = Callable[[Tensor], Tensor]
"""Returns the sum of a tensor over all processes."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a global batch is divided: part k of `num_parts` equal parts is computed by process k % world_size.

    A process computes its `accumulation` parts one after another, and then makes one optimiser step. The result of a
    step depends on the division into parts, and not on the number of processes: two processes with one part each
    compute the same as one process with two parts.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    @property
    def num_parts(self) -> int:
        """Number of parts of a global batch."""
        return self.world_size * self.accumulation

    @property
    def part_size(self) -> int:
        """Number of images of a forward pass."""
        return self.batch_size // self.num_parts

    def part(self, turn: int) -> int:
        """Returns the part that this process computes in a turn, 0..accumulation-1."""
        return turn * self.world_size + self.rank

    def share(self, count: int) -> range:
        """Returns the indices of this process's share of `count` items: every `world_size`-th one."""
        return range(self.rank, count, self.world_size)


ALONE = Layout(batch_size=1)
"""The layout of a single process, which measures all images."""


def divide(batch_size: int, *, max_device_batch: int, rank: int = 0, world_size: int = 1) -> Layout:
    """Divides a batch into as few parts as possible, none larger than `max_device_batch` images (0 means no limit).

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
    """Defines the model, the data and the loss of a run; the engine has the loop, the optimiser and the files.

    Attributes:
        model: the model to train.
        watch: the figure by which the best checkpoint is chosen (higher is better); "" if none is chosen.
    """

    model: nn.Module
    watch: str

    @property
    def num_steps(self) -> int:
        """Optimiser steps per epoch."""

    @property
    def num_inputs(self) -> int:
        """Number of training inputs that an epoch draws from."""

    @property
    def unreadable(self) -> Sequence[str]:
        """One line for each input that this process could not read so far, without duplicates."""

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Yields this process's parts of an epoch's batches, from a step on; seed, epoch and step determine them."""

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns scalars to log; the one called "loss" is minimised."""

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        """Returns figures on validation data, equal in all processes, with each input counted once."""

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the weights, with all information that is needed to use them."""


@runtime_checkable
class Closes(Protocol):
    """An optional part of a task: it has something to close when the run ends, such as processes that read its data."""

    def close(self) -> None:
        """Called once at the end of the run, also after an error."""


@runtime_checkable
class StepHooks(Protocol):
    """An optional part of a task: methods that the engine calls around each step.

    A task needs them if its model also changes without gradients of the loss. `model` is the task's own model on
    the run's device, not the wrapper that synchronises its copies. Every process makes each call.
    """

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called before the first step of an epoch, also of a resumed one; the model is in training mode."""

    def before_update(self, model: nn.Module, step: int) -> None:
        """Called with the final (clipped) gradients, before the optimiser; `step` counts from the run's start."""

    def after_update(self, model: nn.Module, step: int, reduce: Reduce) -> None:
        """Called after the optimiser's step."""

    def concerns(self, step: int, losses: dict[str, float]) -> Sequence[str]:
        """Returns lines to print about a step; `losses` are the means over all processes."""
