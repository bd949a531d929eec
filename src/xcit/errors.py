"""The one exception for a user's mistake: bad name, bad file, bad config, no network."""


class XCiTError(ValueError):
    """A mistake that its message explains in one line: what is wrong, and the way out.

    The command line prints it without a traceback and exits with status 2. Broken invariants of our own are `assert`.
    """
