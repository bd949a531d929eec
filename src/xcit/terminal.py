"""Escapes control characters in text for a terminal, and suppresses log lines of other packages.

Names of files and classes may contain control characters. Text for a file or a pipe is not changed.
"""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from xcit.errors import escaped


class _Escaping(io.TextIOWrapper):
    """A text stream for a terminal. It escapes control characters, except line breaks and tabs."""

    def write(self, text: str) -> int:
        super().write(escaped(text, keep="\n\t"))
        return len(text)


def guard_terminal() -> None:
    """Makes standard output and standard error escape control characters, if they are terminals."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Escaping) and stream.isatty():
            stream.flush()
            guarded = _Escaping(stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
            setattr(sys, name, guarded)


class _EscapingPrints(io.TextIOBase):
    """A text stream that escapes control characters and passes the text on to another stream."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def write(self, text: str) -> int:
        self._target.write(escaped(text, keep="\n\t"))
        return len(text)

    def flush(self) -> None:
        self._target.flush()

    def isatty(self) -> bool:
        return bool(self._target.isatty())

    def fileno(self) -> int:
        return int(self._target.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


@contextmanager
def guard_prints() -> Iterator[None]:
    """Escapes control characters in printed text while a progress display of rich is active.

    The display replaces standard output and standard error with its own streams, which do not escape the text. So this
    context must be entered after the context of the display.
    """
    taken = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in taken.items():
        if stream.isatty() and not isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _EscapingPrints(stream))
    try:
        yield
    finally:
        for name, stream in taken.items():
            setattr(sys, name, stream)


def tell(text: str, *, err: bool = False) -> None:
    """Prints a line to standard output, or to standard error if `err` is true.

    On a terminal, control characters are escaped, even if `guard_terminal` was not called.
    """
    stream = sys.stderr if err else sys.stdout
    print(escaped(text, keep="\n\t") if stream.isatty() else text, file=stream, flush=True)


def for_drawing(stream: IO[str]) -> IO[str]:
    """Returns a stream that escapes nothing, for output that needs control characters, such as a progress bar."""
    if isinstance(stream, _Escaping):
        whole = sys.__stdout__ if stream is sys.stdout else sys.__stderr__
        assert whole is not None
        stream.flush()
        return whole
    return stream


@contextmanager
def logging_only(package: str, level: int) -> Iterator[None]:
    """Suppresses a package's log lines below a level of the module `logging`, while the context is active."""
    logger = logging.getLogger(package)
    usual = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(usual)
