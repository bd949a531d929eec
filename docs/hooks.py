"""Fills the page of the command line with what `--help` of every verb prints."""

from typing import Any

import click

from xcit.cli import _VERBS, _xcit

PAGE = "reference/command-line.md"
PLACE = "<!-- what every verb prints -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(PLACE, "\n".join(f"## {verb}\n\n```text\n{help_of(verb)}\n```\n" for verb in _VERBS))


def help_of(verb: str) -> str:
    """The text of `xcit VERB --help`, in lines that fit the page."""
    top = click.Context(_xcit, info_name="xcit", terminal_width=96, **_xcit.context_settings)
    command = _xcit.get_command(top, verb)
    if command is None:
        raise ValueError(f"no verb {verb}")
    return click.Context(command, parent=top, info_name=verb).get_help()
