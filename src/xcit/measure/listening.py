"""Chooses the callbacks of a measurement: the caller's callbacks, or a progress bar and printed lines."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xcit.progress import progress_bar
from xcit.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Callbacks of a measurement.

    Attributes:
        started: called once with the total number of images.
        report: called with the number of images of each batch.
        announce: called with each line of text for the user.
    """

    started: Callable[[int], None]
    report: Callable[[int], None]
    announce: Callable[[str], None]


@contextmanager
def listening(
    what: str,
    started: Callable[[int], None] | None,
    report: Callable[[int], None] | None,
    announce: Callable[[str], None] | None,
) -> Iterator[Listener]:
    """Yields the given callbacks, or callbacks that print to standard error if all three callbacks are None.

    The printing callbacks show a progress bar with the description `what` if standard error is a terminal.
    """
    if started is None and report is None and announce is None:
        with progress_bar(what) as bar:
            yield Listener(started=bar.set_total, report=bar.advance, announce=lambda line: tell(line, err=True))
        return
    yield Listener(started=started or _unseen, report=report or _unseen, announce=announce or _unseen)


def _unseen(_: object) -> None:
    pass
