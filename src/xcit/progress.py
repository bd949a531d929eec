"""Shows progress bars with rate and remaining time, if standard error is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xcit.errors import escaped
from xcit.terminal import for_drawing, guard_prints


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Functions that update a progress bar.

    Attributes:
        advance: adds a number of finished items.
        set_total: sets the total number of items, if the total was not known at the beginning.
    """

    advance: Callable[[int], None]
    set_total: Callable[[int], None]


@contextmanager
def progress_bar(
    what: str, total: int | None = None, unit: str = "images", *, redraws_alone: bool = True
) -> Iterator[Bar]:
    """Shows a progress bar if standard error is a terminal and there is more than one item.

    Args:
        what: text before the bar.
        total: number of items; None if it is not known yet.
        unit: plural name of the items, which is shown with the rate.
        redraws_alone: whether a thread redraws the bar regularly. If false, the bar is drawn only when it advances, so
            that no thread disturbs measurements of time.
    """
    if not sys.stderr.isatty() or (total is not None and total < 2):
        yield Bar(advance=lambda _: None, set_total=lambda _: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} {unit}/s" if speed else f"- {unit}/s")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(file=for_drawing(sys.stderr))
    with Progress(*columns, console=console, auto_refresh=redraws_alone) as progress, guard_prints():
        task = progress.add_task(escaped(what), total=total)

        def advance(count: int) -> None:
            progress.advance(task, count)
            if not redraws_alone:
                progress.refresh()

        yield Bar(advance=advance, set_total=lambda count: progress.update(task, total=count))


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function that shows the progress of downloads; see `DownloadProgress` in `weights/download.py`.

    The function gets the name of a download, the bytes received so far, and the total bytes (None if unknown).
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as SpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        SpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=for_drawing(sys.stderr))) as progress, guard_prints():
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escaped(what), total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield update
