"""Functions for commands that torchrun may start in several processes. Only the main process prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xcit.errors import XCiTError

STOPPED = 75
"""Exit status of a run that a signal stopped, after the run was saved. It is EX_TEMPFAIL of sysexits.h: "try again"."""


def is_main() -> bool:
    """Returns whether this is the main process: the only process, or the process with rank 0."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_voice() -> Iterator[None]:
    """Lets only the main process print the message about a user's mistake.

    The other processes exit with the same status and print nothing, because the error usually occurs in all processes.
    """
    try:
        yield
    except (XCiTError, click.UsageError) as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

            # torchrun's summary shows the recorded error without a traceback. An error that occurs only in a process
            # other than the main process is shown nowhere else.
            ErrorHandler().record_exception(XCiTError(str(error)))
        if is_main():
            raise
        from xcit.cli import USER_ERROR

        sys.exit(USER_ERROR)
