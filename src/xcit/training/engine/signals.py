"""What signals mean to a run: SIGTERM and SIGINT a wish to stop, which is granted when all is saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While it is entered, the first signal is noted; a second one acts as it does without this class.

    Outside a program's main thread, where Python takes no signals, nothing is noted.

    Attributes:
        received: the name of the signal, "" while there is none.
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
        """From now on the end of a child process interrupts nothing.

        From the first start of processes that read data, torch raises an error wherever the program is when one of them
        dies: between the optimiser's change of one weight and of the next. Without that a loader still says so, some
        seconds later, when it is asked for more.
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
    """Unlike `SIG_IGN` leaves a child to be waited for."""
