"""Lines that fit the terminal; in a file or pipe each stays one line."""

import shutil
import sys
import textwrap
from collections.abc import Iterable

import click


def terminal_width(*, err: bool = False) -> int | None:
    """Columns of the terminal that standard output, or with `err` standard error, goes to; none if it is none."""
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str, *, err: bool = False, indent: int = 0) -> None:
    """Prints a line, broken between words where the terminal is narrower; what goes on is indented."""
    width = terminal_width(err=err)
    if width is not None and len(text) > width:
        text = textwrap.fill(
            text,
            max(width, indent + 20),
            subsequent_indent=" " * indent,
            break_long_words=False,  # a path stays one that can be copied
            break_on_hyphens=False,
        )
    click.echo(text, err=err)


def say_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints lines of a label and a text."""
    for label, text in rows:
        say(f"{label:14s} {text}", indent=15)
