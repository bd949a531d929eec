"""Who hears of a measurement: whoever is told to, or else people at a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xcit.progress import progress_bar
from xcit.terminal import tell


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Hears of the number of images, of those of each batch, and of lines for people."""

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
    """Those that were given; without any of them a progress bar, if standard error is a terminal, and lines on it."""
    if started is None and report is None and announce is None:
        with progress_bar(what) as bar:
            yield Listener(started=bar.set_total, report=bar.advance, announce=lambda line: tell(line, err=True))
        return
    yield Listener(started=started or _unseen, report=report or _unseen, announce=announce or _unseen)


def _unseen(_: object) -> None:
    pass
