"""Stop signals: after SIGTERM or SIGINT, a run saves its state and stops."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context manager that records the first SIGTERM or SIGINT. A second signal has its usual effect.

    Python allows signal handlers only in the main thread, so the class records nothing in other threads.

    Attributes:
        received: name of the signal, such as "SIGTERM"; "" if no signal was received.
    """

    def __init__(self) -> None:
        self.received = ""
        self._previous: dict[signal.Signals, Any] = {}
        self._of_children: Any = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._of_children is not None:
            signal.signal(signal.SIGCHLD, self._of_children)
            self._of_children = None

    def hold_children(self) -> None:
        """Replaces torch's SIGCHLD handler, so that the death of a worker does not interrupt this process.

        A worker is a process that reads data. torch's handler raises an error as soon as a worker dies, even if this
        process is in the middle of an optimiser step. Without torch's handler, the data loader still reports the dead
        worker, but only some seconds after it is asked for more data.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGCHLD)
        if callable(current) and current is not _pass:
            self._of_children = current
            signal.signal(signal.SIGCHLD, _pass)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _pass(number: int, frame: FrameType | None) -> None:
    """Does nothing. `SIG_IGN` is not used, because with it a parent process can't wait for its child."""
