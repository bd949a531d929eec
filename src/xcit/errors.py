"""The exception for errors that a user can correct, such as a wrong name, file or config, or a missing network."""

from collections.abc import Iterable

LONGEST_LINE = 400
"""Largest number of characters in a line of a message. The middle of a longer line is left out."""

_SHOWN_END = 120


class XCiTError(ValueError):
    """An error that the user can correct. The first line of the message says what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 2. Errors in the code of this package
    raise other exceptions, such as AssertionError.

    A message may quote text from files and servers. So control characters in the message are escaped, and no line is
    longer than `LONGEST_LINE`.
    """

    def __str__(self) -> str:
        return "\n".join(printable_line(line) for line in super().__str__().split("\n"))


def printable_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Returns text on one line: control characters are escaped, line breaks become spaces, long text is shortened."""
    text = escaped(text.replace("\r", " ").replace("\n", " "))
    if len(text) <= longest:
        return text
    end = min(_SHOWN_END, longest // 3)
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def escaped(text: str, keep: str = "") -> str:
    """Replaces unprintable characters, except those in `keep`, with Python's escape sequences."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


def some_of(names: Iterable[str], most: int = 3) -> str:
    """Returns the first `most` names, separated by commas; "..." follows if there are more names."""
    names = list(names)
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def check_field(config: object, name: str, condition: bool, must: str) -> None:
    """Checks a field of a config.

    Args:
        config: the config that contains the field.
        name: name of the field.
        condition: whether the value of the field is valid.
        must: the end of the message, which says what the value must be, such as "at least 1".

    Raises:
        XCiTError: if the condition is false.
    """
    if not condition:
        raise XCiTError(f"{type(config).__name__}: {name} is {getattr(config, name)}, but must be {must}")
