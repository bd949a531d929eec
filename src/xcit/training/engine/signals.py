"""Signals during a run: SIGTERM and SIGINT ask the run to stop, and it stops once everything is saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context manager that records the first signal; a second signal has its usual effect.

    Python handles signals only in the main thread, so in other threads nothing is recorded.

    Attributes:
        received: name of the signal; "" if there was none.
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
        """Prevents the end of a child process from interrupting this process.

        Once processes that read data run, torch raises an error as soon as one of them dies, wherever this process is,
        even in the middle of an optimiser step. Without that handler, a loader still reports the death when it is asked
        for more data, some seconds later.
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
    """Does nothing. Unlike with `SIG_IGN`, the parent can still wait for the child."""
