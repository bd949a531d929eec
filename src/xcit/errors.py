"""The one exception for a user's mistake: bad name, bad file, bad config, no network."""

from collections.abc import Iterable

LONGEST_LINE = 400
"""Characters of the longest line of a message: what is longer loses its middle."""

_SHOWN_END = 120


class XCiTError(ValueError):
    """A mistake that its message explains in one line: what is wrong, and the way out; lists are on lines below it.

    The command line prints it without a traceback and exits with status 2. Broken invariants of our own are `assert`.

    Names, values and reasons in a message come from files and servers, so control characters in it are escaped, and
    no line of it is longer than `LONGEST_LINE`.
    """

    def __str__(self) -> str:
        return "\n".join(printable_line(line) for line in super().__str__().split("\n"))


def printable_line(text: str, longest: int = LONGEST_LINE) -> str:
    """A text on one line: control characters escaped, a line break as a space, the middle left out where too long."""
    text = escaped(text.replace("\r", " ").replace("\n", " "))
    if len(text) <= longest:
        return text
    end = min(_SHOWN_END, longest // 3)
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def escaped(text: str, keep: str = "") -> str:
    """A text whose control characters, but for those to keep, are written as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


def some_of(names: Iterable[str], most: int = 3) -> str:
    """The first of some names on a line, with dots where there are more."""
    names = list(names)
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


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
