"""The callbacks of a measurement: those of the caller, or else a progress bar on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xcit.progress import progress_bar
from xcit.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Callbacks for the number of images, for the number of images of each batch, and for lines for the user."""

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
    """Yields the given callbacks. If none is given: lines on standard error, and a progress bar on a terminal."""
    if started is None and report is None and announce is None:
        with progress_bar(what) as bar:
            yield Listener(started=bar.set_total, report=bar.advance, announce=lambda line: tell(line, err=True))
        return
    yield Listener(started=started or _unseen, report=report or _unseen, announce=announce or _unseen)


def _unseen(_: object) -> None:
    pass
