"""Interprets the options that `full_size_options` adds, and shows a progress bar and a report line per image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from xcit.errors import XCiTError

if TYPE_CHECKING:
    from xcit.cli.options import FullSizeOptions
    from xcit.inference.full_size import FullSize
    from xcit.streaming import Report


@contextmanager
def full_size_of(large: "FullSizeOptions", *, num_images: int) -> Iterator["FullSize | None"]:
    """Yields the settings for images that are processed at their own size, or None without --full-size.

    Raises:
        XCiTError: if an option is invalid, or if an option that needs --full-size is given without --full-size.
    """
    if not large.full_size:
        for name in large.given():
            raise XCiTError(f"{name} is for images at their own size: give --full-size too")
        yield None
        return
    from xcit.cli.options import checked_dtype
    from xcit.images.selection import Selection
    from xcit.inference.full_size import FullSize
    from xcit.progress import progress_bar
    from xcit.streaming import Budget, as_budget

    if large.mask is not None and num_images != 1:
        raise XCiTError(f"--mask {large.mask} is for one image, not for {num_images}")
    selection = Selection(
        level=large.level,
        mpp=large.mpp,
        bands=large.bands,
        value_range=cast(tuple[float, float] | None, large.value_range),
        region=cast(tuple[int, int, int, int] | None, large.region),
        mask=large.mask,
    )

    with progress_bar("full size", unit="rows") as bar:
        shown = 0  # number of finished rows of the current image

        def progress(done: int, total: int) -> None:
            nonlocal shown
            bar.set_total(total * num_images)  # an estimate, because the images may differ in size
            bar.advance(done - shown)
            shown = done

        def report(name: str, found: "Report") -> None:
            nonlocal shown
            shown = 0
            click.echo(f"xcit: {name}: {found.line()}", err=True)

        budget = Budget(
            memory=as_budget(large.memory).memory,
            scratch=None if large.scratch is None else Path(large.scratch),
            token_dtype=None if large.token_dtype is None else checked_dtype(large.token_dtype),
        )
        yield FullSize(memory=budget, progress=progress, report=report, selection=selection)
