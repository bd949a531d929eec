"""A terminal does what control characters tell it, and names of files and classes may hold any.

What is printed on a terminal gets them escaped. A file or a pipe gets the text as it is.
"""

import io
import sys
from typing import IO

from xcit.errors import escaped


class _Escaping(io.TextIOWrapper):
    """Text for a terminal, control characters escaped but for line breaks and tabs."""

    def write(self, text: str) -> int:
        super().write(escaped(text, keep="\n\t"))
        return len(text)


def guard_terminal() -> None:
    """Has standard output and standard error, where they are terminals, escape what they are given."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, _Escaping) and stream.isatty():
            stream.flush()
            guarded = _Escaping(stream.buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
            setattr(sys, name, guarded)


def for_drawing(stream: IO[str]) -> IO[str]:
    """The stream for what draws by control characters of its own, such as a progress bar."""
    if isinstance(stream, _Escaping):
        whole = sys.__stdout__ if stream is sys.stdout else sys.__stderr__
        assert whole is not None
        stream.flush()
        return whole
    return stream
