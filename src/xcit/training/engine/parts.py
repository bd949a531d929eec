"""The parts of an epoch's batches that a process computes, which a stop does not cut short."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from xcit.errors import XCiTError
from xcit.training.engine.signals import StopSignals
from xcit.training.engine.task import Closes, Layout, Task


class EpochParts:
    """This process's parts of an epoch's batches, one after another.

    A signal that asks for a stop may reach the processes that read data too, and end them before the step is done. A
    step that has begun has moved statistics already (batch norms', a DINO teacher's), and the other processes wait for
    this one's share of it. So the parts that are missing are read once more, by new processes, the step is finished,
    and the loop stops where all processes stop, between two steps.
    """

    def __init__(self, task: Task, layout: Layout, signals: StopSignals, *, epoch: int, first_step: int) -> None:
        """Begins at a step of an epoch, both counted from 0."""
        self._task, self._layout, self._signals = task, layout, signals
        self._epoch, self._first_step = epoch, first_step
        self._num_given, self._is_reopened = 0, False
        self._parts: Iterator[Any] | None = None

    def next(self) -> Any:
        """The next part.

        Raises:
            XCiTError: if a process that reads data died, and no signal has asked for a stop.
        """
        while True:
            try:
                self._parts = self._parts or self._open()
                part = next(self._parts)
            except RuntimeError as error:
                if not is_dead_worker(error):
                    raise
                if not self._signals.received or self._is_reopened:
                    raise dead_worker(error) from error
                self._is_reopened, self._parts = True, None
                if isinstance(self._task, Closes):
                    self._task.close()
            else:
                self._signals.hold_children()  # torch's handler is there once its processes are
                self._num_given += 1
                return part

    def _open(self) -> Iterator[Any]:
        step, num_before = divmod(self._num_given, self._layout.accumulation)
        parts = self._task.train_batches(self._epoch, self._first_step + step)
        deque(islice(parts, num_before), maxlen=0)  # computed already
        return parts


def is_dead_worker(error: RuntimeError) -> bool:
    """Whether it is torch's report of a process that read data and ended."""
    return "DataLoader worker" in str(error)


def dead_worker(error: RuntimeError) -> XCiTError:
    """The same for a person."""
    return XCiTError(
        f"a process that reads data died ({str(error).splitlines()[0]}): "
        "if memory was short, set run.num_workers or run.max_device_batch lower"
    )
