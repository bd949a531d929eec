"""Prints lines that fit the terminal; in a file or pipe they are not wrapped."""

import shutil
import sys
import textwrap
from collections.abc import Iterable

import click


def terminal_width(*, err: bool = False) -> int | None:
    """Returns the columns of the terminal for standard output, or with `err` for standard error.

    None if there is none.
    """
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str, *, err: bool = False, indent: int = 0) -> None:
    """Prints a line, wrapped between words if the terminal is narrow; the continuation is indented."""
    width = terminal_width(err=err)
    if width is not None and len(text) > width:
        text = textwrap.fill(
            text,
            max(width, indent + 20),
            subsequent_indent=" " * indent,
            break_long_words=False,  # a path can then be copied
            break_on_hyphens=False,
        )
    click.echo(text, err=err)


def say_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints lines of a label and a text."""
    for label, text in rows:
        say(f"{label:14s} {text}", indent=15)
