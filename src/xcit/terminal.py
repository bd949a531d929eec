"""Protects terminals from control characters, which names of files and classes may contain.

Text that is printed on a terminal gets them escaped. A file or a pipe gets the text unchanged.
"""

import io
import sys
from typing import IO

from xcit.errors import escaped


class _Escaping(io.TextIOWrapper):
    """A text stream to a terminal that escapes control characters, except line breaks and tabs."""

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


def for_drawing(stream: IO[str]) -> IO[str]:
    """Returns the unguarded stream, for output that needs control characters, such as a progress bar."""
    if isinstance(stream, _Escaping):
        whole = sys.__stdout__ if stream is sys.stdout else sys.__stderr__
        assert whole is not None
        stream.flush()
        return whole
    return stream
