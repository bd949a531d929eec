"""What people see of a training run: a line an epoch, and on a terminal a panel with where it is and how it does."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from xcit.errors import escaped
from xcit.terminal import for_drawing

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xcit.training.engine.progress import Progress

_REDRAW_SECONDS = 0.2


class RunDisplay:
    """What people see of a training run: its lines on standard output, and a panel where there is a terminal.

    The heading comes with the first line or step, so that a mistake is told without it.

    Args:
        heading: the first line.
        say: prints a line.
        draw: shows the panel, none where there is no terminal.
        clock: seconds since any point.
    """

    def __init__(
        self,
        heading: str,
        *,
        say: Callable[[str], None] = click.echo,
        draw: Callable[["RenderableType"], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._heading, self._say, self._draw, self._clock = heading, say, draw, clock
        self._started = clock()
        self._first: tuple[float, int] | None = None
        self._last: Progress | None = None
        self._drawn = -_REDRAW_SECONDS

    def announce(self, line: str) -> None:
        """Prints a line."""
        if self._heading:
            self._say(self._heading)
            self._heading = ""
        self._say(line)

    def report(self, progress: "Progress") -> None:
        """Prints a line for each epoch, after its evaluation if it has one, and draws the panel anew."""
        now = self._clock()
        done, total = steps_of_run(progress)
        self._first = self._first or (now, done)
        left = seconds_left(done - self._first[1], total - done, now - self._first[0])
        if self._last is not None and self._last.figures is None and self._last.epoch < progress.epoch:
            self.announce(epoch_line(self._last, left))
        if progress.figures is not None:
            self.announce(epoch_line(progress, left))
        if self._draw is not None and now - self._drawn >= _REDRAW_SECONDS:
            self._draw(run_panel(progress, now - self._started, left))
            self._drawn = now
        self._last = progress


@contextmanager
def run_display(heading: str) -> Iterator[RunDisplay]:
    """Shows a training run, with a panel where standard error is a terminal; it is gone at the end, the lines stay."""
    if not sys.stderr.isatty():
        yield RunDisplay(heading)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=for_drawing(sys.stderr))

    def say_above(line: str) -> None:
        console.print(escaped(line, keep="\n\t"), markup=False, highlight=False, overflow="ignore", crop=False)

    # No thread of its own: the processes that read data are forks of this one, and may print too.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield RunDisplay(
            heading,
            # A line that goes to the panel's terminal must not be written across it.
            say=say_above if sys.stdout.isatty() else click.echo,
            draw=lambda panel: live.update(panel, refresh=True),
        )


def steps_of_run(progress: "Progress") -> tuple[int, int]:
    """Steps that are done of a run, and how many it has."""
    return progress.epoch * progress.num_steps + progress.step, progress.num_epochs * progress.num_steps


def seconds_left(num_done: int, num_left: int, seconds: float) -> float | None:
    """How long the rest takes at the pace so far; none where nothing was done yet."""
    return seconds / num_done * num_left if num_done else None


def duration(seconds: float | None) -> str:
    """Seconds as people read them: 0:00:07, 13:02:59, 3 d 4:05:06."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * bool(days) + f"{hour}:{minute:02}:{second:02}"


def epoch_line(progress: "Progress", left: float | None) -> str:
    """An epoch in a line: the loss, the figures if it was evaluated, the speed, and how long the run will take yet."""
    figures = "".join(f", {name} {value:.3f}" for name, value in (progress.figures or {}).items())
    line = f"epoch {progress.epoch + 1}/{progress.num_epochs}: loss {progress.loss:.3f}{figures}, {_speed(progress)}"
    if progress.epoch + 1 == progress.num_epochs:
        return line
    return f"{line}, {duration(left)} left"


def run_panel(progress: "Progress", elapsed: float, left: float | None) -> "RenderableType":
    """A run in two lines: where it is and how it does, and a bar over all its epochs."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done, total = steps_of_run(progress)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=total, completed=done, width=40),
        f"{done / total:.0%}",
        f"{duration(elapsed)} passed, {duration(left)} left",
    )
    parts = (
        f"epoch {progress.epoch + 1}/{progress.num_epochs}",
        f"step {progress.step}/{progress.num_steps}",
        f"loss {progress.loss:.3f}",
        f"lr {progress.lr:.2e}",
        _speed(progress),
    )
    return Group(Text("  ".join(parts)), bar)


def _speed(progress: "Progress") -> str:
    return f"{progress.images_per_second:.0f} images/s, {progress.data_wait:.0%} waiting for data"
