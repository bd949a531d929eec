"""Progress bars with rate and remaining time, only if standard error is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xcit.errors import escaped
from xcit.terminal import for_drawing, guard_prints


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The functions of a bar: `advance` by a count, and `set_total` if the total is known late."""

    advance: Callable[[int], None]
    set_total: Callable[[int], None]


@contextmanager
def progress_bar(
    what: str, total: int | None = None, unit: str = "images", *, redraws_alone: bool = True
) -> Iterator[Bar]:
    """Shows a progress bar, unless standard error is not a terminal or there is only one item.

    Without `redraws_alone` it is drawn only when it advances, so that drawing does not disturb measurements.
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
