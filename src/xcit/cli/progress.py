"""Progress bars of the command line, and those of downloads."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xcit.errors import escaped
from xcit.progress import Bar, progress_bar
from xcit.terminal import for_drawing, guard_prints

__all__ = ["Bar", "download_bar", "progress_bar"]


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yields a function for `weights.fetch.DownloadProgress`: (what, bytes done, total bytes or None)."""
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
