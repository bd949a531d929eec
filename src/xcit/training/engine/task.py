"""The protocol between the engine and what it trains, and how a global batch is divided among processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from xcit.errors import XCiTError

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a global batch is divided: part k of `num_parts` equal parts is computed by process k % world_size.

    A process computes its `accumulation` parts one after another and steps once. The division alone, not the number of
    processes, decides what a step computes: two processes of one part do what one process of two parts does.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    @property
    def num_parts(self) -> int:
        """Parts of a global batch."""
        return self.world_size * self.accumulation

    @property
    def part_size(self) -> int:
        """Images a forward pass."""
        return self.batch_size // self.num_parts

    def part(self, turn: int) -> int:
        """The part that this process computes in a turn, 0..accumulation-1."""
        return turn * self.world_size + self.rank

    def share(self, count: int) -> range:
        """What this process takes of so many things: every `world_size`-th one."""
        return range(self.rank, count, self.world_size)


ALONE = Layout(batch_size=1)
"""One process, which takes all of what is measured."""


def divide(batch_size: int, *, max_device_batch: int, rank: int = 0, world_size: int = 1) -> Layout:
    """The division with the fewest parts, none larger than `max_device_batch` images (0 is no limit).

    Raises:
        XCiTError: if there is none with equal parts.
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
    """What a batch means. The engine owns the loop, the optimiser and the files; the task owns the rest.

    Attributes:
        model: what is trained.
        watch: the figure by which the best checkpoint is chosen; more is better. "" chooses none.
    """

    model: nn.Module
    watch: str

    @property
    def num_steps(self) -> int:
        """Optimiser steps an epoch."""

    @property
    def num_inputs(self) -> int:
        """Training inputs an epoch draws from."""

    @property
    def unreadable(self) -> Sequence[str]:
        """A line for each input that this process could not read, each once; it grows as they are met."""

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Any]:
        """This process's parts of an epoch's batches, from a step on; equal for equal seed, epoch and step."""

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Scalars to log, among them "loss", which is the one that is minimised."""

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        """Figures on data that are not trained on, the same in every process, each input counted once."""

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the weights with what a person needs to use them."""


@runtime_checkable
class Closes(Protocol):
    """What a task may have besides: something to end with the run, as the processes that read its data."""

    def close(self) -> None:
        """Called once, however the run ends."""


@runtime_checkable
class StepHooks(Protocol):
    """What a task may have besides: a say in each step, where more than the gradients of its loss move the model.

    `model` is the task's own on the run's device, not what keeps its copies together; every process makes each call.
    """

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        """Before the first step of an epoch, or of what is left of it; the model has been set to training."""

    def before_update(self, model: nn.Module, step: int) -> None:
        """Between the gradients, clipped if the run clips them, and the optimiser; `step` counts from the run's 0."""

    def after_update(self, model: nn.Module, step: int, reduce: Reduce) -> None:
        """After the optimiser."""

    def concerns(self, step: int, losses: dict[str, float]) -> Sequence[str]:
        """Lines for people about a step, whose scalars are the mean of all processes."""
