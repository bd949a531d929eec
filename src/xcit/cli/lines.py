"""Prints lines that are wrapped to the width of the terminal. Lines for a file or a pipe are not wrapped."""

import shutil
import sys
import textwrap
from collections.abc import Iterable

import click


def terminal_width(*, err: bool = False) -> int | None:
    """Returns the number of columns of the terminal, or None if standard output is not a terminal.

    If `err` is true, standard error is checked instead of standard output.
    """
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str, *, err: bool = False, indent: int = 0) -> None:
    """Prints a line to standard output, or to standard error if `err` is true.

    On a narrow terminal, the line is wrapped between words, and its continuation is indented by `indent` columns.
    """
    width = terminal_width(err=err)
    if width is not None and len(text) > width:
        text = textwrap.fill(
            text,
            max(width, indent + 20),
            subsequent_indent=" " * indent,
            break_long_words=False,  # so that a long path can be copied
            break_on_hyphens=False,
        )
    click.echo(text, err=err)


def say_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Prints each label and its text on a line."""
    for label, text in rows:
        say(f"{label:14s} {text}", indent=15)
