"""The parts of an epoch's batches that one process computes; a stop signal does not interrupt a step."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from xcit.errors import XCiTError
from xcit.training.engine.signals import StopSignals
from xcit.training.engine.task import Closes, Layout, Task


class EpochParts:
    """This process's parts of an epoch's batches, one after another.

    A signal that asks the run to stop may also reach the processes that read data, and end them before the step is
    finished. But a step that has begun has already updated statistics (of batch norms, of a DINO teacher), and the
    other processes wait for this process's part of it. So new processes read the missing parts once more, the step is
    finished, and the loop stops in all processes between the same two steps.
    """

    def __init__(self, task: Task, layout: Layout, signals: StopSignals, *, epoch: int, first_step: int) -> None:
        """Begins at a step of an epoch, both counted from 0."""
        self._task, self._layout, self._signals = task, layout, signals
        self._epoch, self._first_step = epoch, first_step
        self._num_given, self._is_reopened = 0, False
        self._parts: Iterator[Any] | None = None

    def next(self) -> Any:
        """Returns the next part.

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
                self._signals.hold_children()  # torch installs its handler when it starts its processes
                self._num_given += 1
                return part

    def _open(self) -> Iterator[Any]:
        step, num_before = divmod(self._num_given, self._layout.accumulation)
        parts = self._task.train_batches(self._epoch, self._first_step + step)
        deque(islice(parts, num_before), maxlen=0)  # computed already
        return parts


def is_dead_worker(error: RuntimeError) -> bool:
    """Whether an error is torch's report that a process that reads data has ended."""
    return "DataLoader worker" in str(error)


def dead_worker(error: RuntimeError) -> XCiTError:
    """Returns the same error in words for users."""
    return XCiTError(
        f"a process that reads data died ({str(error).splitlines()[0]}): "
        "if memory was short, set run.num_workers or run.max_device_batch lower"
    )
