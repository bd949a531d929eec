"""The one exception for a user's mistake: bad name, bad file, bad config, no network."""


class XCiTError(ValueError):
    """A mistake that its message explains in one line: what is wrong, and the way out.

    The command line prints it without a traceback and exits with status 2. Broken invariants of our own are `assert`.
    """


def check_field(config: object, name: str, condition: bool, must: str) -> None:
    """Checks a field of a config.

    Args:
        config: whose field it is.
        name: of the field.
        condition: whether its value will do.
        must: what it must be, which ends the sentence.

    Raises:
        XCiTError: if the condition is false.
    """
    if not condition:
        raise XCiTError(f"{type(config).__name__}: {name} is {getattr(config, name)}, must be {must}")
