"""Reads the parts of an epoch's batches that one process computes. A stop signal does not interrupt a step.

A part contains the images of one forward pass of one process (see `Layout`). A worker is a process that reads data.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from xcit.errors import XCiTError
from xcit.training.engine.signals import StopSignals
from xcit.training.engine.task import Closes, Layout, Task


class EpochParts:
    """This process's parts of an epoch's batches. The method `next` returns one part after another.

    A stop signal may also kill the workers in the middle of a step. The step must still be finished, because it has
    already updated statistics (of batch norms, of a DINO teacher), and the other training processes wait for this
    process. So new workers read the missing parts, this process finishes the step, and all processes stop after the
    same step.
    """

    def __init__(self, task: Task, layout: Layout, signals: StopSignals, *, epoch: int, first_step: int) -> None:
        """Starts to read at step `first_step` of epoch `epoch`. Both are counted from 0."""
        self._task, self._layout, self._signals = task, layout, signals
        self._epoch, self._first_step = epoch, first_step
        self._num_given, self._is_reopened = 0, False
        self._parts: Iterator[Any] | None = None

    def next(self) -> Any:
        """Returns the next part.

        Raises:
            XCiTError: if a worker died although no stop signal was received, or if a new worker died too.
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
                self._signals.hold_children()  # torch sets its own handler when workers start
                self._num_given += 1
                return part

    def _open(self) -> Iterator[Any]:
        step, num_before = divmod(self._num_given, self._layout.accumulation)
        parts = self._task.train_batches(self._epoch, self._first_step + step)
        deque(islice(parts, num_before), maxlen=0)  # skips the computed parts
        return parts


def is_dead_worker(error: RuntimeError) -> bool:
    """Returns whether an error is torch's report that a worker has died."""
    return "DataLoader worker" in str(error)


def dead_worker(error: RuntimeError) -> XCiTError:
    """Converts torch's report to an error message for the user."""
    return XCiTError(
        f"a process that reads data died ({str(error).splitlines()[0]}): "
        "if memory was short, set run.num_workers or run.max_device_batch lower"
    )
