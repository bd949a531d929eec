"""The output of a training run: one line per epoch, and on a terminal also a panel with the current progress."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xcit.errors import escaped
from xcit.terminal import for_drawing, tell

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xcit.training.engine.progress import Progress

_REDRAW_SECONDS = 0.2


class RunDisplay:
    """The output of a training run: lines on standard output and, on a terminal, a panel.

    The heading is printed just before the first line. If the run fails before its first line, only the error is
    printed.

    Args:
        heading: text that describes the run.
        say: function that prints a line.
        draw: function that draws the panel; None if there is no terminal.
        clock: function that returns the time in seconds, counted from any fixed time.
    """

    def __init__(
        self,
        heading: str,
        *,
        say: Callable[[str], None] = tell,
        draw: Callable[["RenderableType"], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._heading, self._say, self._draw, self._clock = heading, say, draw, clock
        self._started = clock()
        self._first: tuple[float, int] | None = None
        self._last: Progress | None = None
        self._drawn = -_REDRAW_SECONDS

    def announce(self, line: str) -> None:
        """Prints a line. The heading is printed before the first line."""
        if self._heading:
            self._say(self._heading)
            self._heading = ""
        self._say(line)

    def report(self, progress: "Progress") -> None:
        """Redraws the panel, and prints a line for each finished epoch.

        If the epoch is evaluated, the line is printed after the evaluation.
        """
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
    """Returns a context with the display of a run. On a terminal it has a panel, which is removed at the end."""
    if not sys.stderr.isatty():
        yield RunDisplay(heading)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=for_drawing(sys.stderr))

    def say_above(line: str) -> None:
        console.print(escaped(line, keep="\n\t"), markup=False, highlight=False, overflow="ignore", crop=False)

    # The panel has no refresh thread, because the processes that read data are forked from this process and may print
    # too. If a thread held a lock during a fork, the lock would never be released in the forked process.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield RunDisplay(
            heading,
            # If standard output is a terminal too, lines must be printed above the panel, and not over it.
            say=say_above if sys.stdout.isatty() else tell,
            draw=lambda panel: live.update(panel, refresh=True),
        )


def steps_of_run(progress: "Progress") -> tuple[int, int]:
    """Returns the number of finished steps of a run, and its total number of steps."""
    return progress.epoch * progress.num_steps + progress.step, progress.num_epochs * progress.num_steps


def seconds_left(num_done: int, num_left: int, seconds: float) -> float | None:
    """Estimates how many seconds `num_left` steps take, if `num_done` steps took `seconds`; None if `num_done` is 0."""
    return seconds / num_done * num_left if num_done else None


def duration(seconds: float | None) -> str:
    """Formats a number of seconds, as in "0:00:07", "13:02:59" and "3 d 4:05:06"; None gives "-:--:--"."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} d " * bool(days) + f"{hour}:{minute:02}:{second:02}"


def epoch_line(progress: "Progress", left: float | None) -> str:
    """Formats the line of an epoch: loss, figures of the evaluation (if any), speed, and remaining time of the run."""
    figures = "".join(f", {name} {value:.3f}" for name, value in (progress.figures or {}).items())
    line = f"epoch {progress.epoch + 1}/{progress.num_epochs}: loss {progress.loss:.3f}{figures}, {_speed(progress)}"
    if progress.epoch + 1 == progress.num_epochs:
        return line
    return f"{line}, {duration(left)} left"


def run_panel(progress: "Progress", elapsed: float, left: float | None) -> "RenderableType":
    """Returns the panel: a line with epoch, step, loss, learning rate and speed, and a progress bar of the run."""
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
