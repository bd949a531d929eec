"""Functions for commands that may run in several processes, of which only one prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xcit.errors import XCiTError

STOPPED = 75
"""Exit status of a run that was saved and stopped by a signal: sysexits' EX_TEMPFAIL, which means try again."""


def is_main() -> bool:
    """Whether this is the process that prints, among those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_voice() -> Iterator[None]:
    """Lets one process print an error that occurs in all processes; the others end with the same status, silently."""
    try:
        yield
    except (XCiTError, click.UsageError) as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

            # torchrun's summary shows this without a traceback. A mistake in a single process is not shown anywhere
            # else.
            ErrorHandler().record_exception(XCiTError(str(error)))
        if is_main():
            raise
        from xcit.cli import USER_ERROR

        sys.exit(USER_ERROR)
