"""The exception for a user's mistake, such as a wrong name, file or config, or a missing network."""

from collections.abc import Iterable

LONGEST_LINE = 400
"""Characters of the longest line of a message; the middle of a longer line is left out."""

_SHOWN_END = 120


class XCiTError(ValueError):
    """A user's mistake. The message says in one line what is wrong and what to do; lists follow on lines below it.

    The command line prints it without a traceback and exits with status 2. Our own broken invariants are `assert`.

    Names, values and reasons in a message come from files and servers. So control characters in it are escaped, and no
    line is longer than `LONGEST_LINE`.
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
    """Returns text with control characters, except those in `keep`, written as Python's escapes."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


def some_of(names: Iterable[str], most: int = 3) -> str:
    """Returns the first names on one line, followed by dots if there are more than `most`."""
    names = list(names)
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"


def check_field(config: object, name: str, condition: bool, must: str) -> None:
    """Checks a field of a config.

    Args:
        config: the config.
        name: name of the field.
        condition: whether its value is valid.
        must: what the value must be, for the end of the message.

    Raises:
        XCiTError: if the condition is false.
    """
    if not condition:
        raise XCiTError(f"{type(config).__name__}: {name} is {getattr(config, name)}, must be {must}")
