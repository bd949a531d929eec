"""What verbs share that may run in several processes at once: one of them speaks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from xcit.errors import XCiTError

STOPPED = 75
"""Exit status of a run that a signal stopped after it had saved: sysexits' EX_TEMPFAIL, try again."""


def is_main() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def one_voice() -> Iterator[None]:
    """Lets one process of several tell a mistake that they share; the others end with the same status, silently."""
    try:
        yield
    except (XCiTError, click.UsageError) as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

            # For torchrun's own summary, without a traceback: what one process alone met is not shown anywhere else.
            ErrorHandler().record_exception(XCiTError(str(error)))
        if is_main():
            raise
        from xcit.cli import USER_ERROR

        sys.exit(USER_ERROR)
