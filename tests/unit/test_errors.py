import pickle

import pytest

from xcit.errors import LONGEST_LINE, XCiTError, printable_line
from xcit.weights.fetch import FetchError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.jpg: no such file", "a.jpg: no such file"),
        ("two  spaces.jpg", "two  spaces.jpg"),
        ("a\rb\tc", r"a b\tc"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("caf\u00e9 \u2028 \udcff", r"caf\u00e9 \u2028 \udcff".replace(r"\u00e9", "\u00e9")),
    ],
)
def test_one_printable_line(text, line):
    assert printable_line(text) == line == str(XCiTError(text)) == str(FetchError(text))


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = str(XCiTError("beginning " + "x" * 5000 + " end"))
    assert len(text) == LONGEST_LINE
    assert text.startswith("beginning xxx") and text.endswith("xxx end") and " ... " in text
    assert str(XCiTError("x" * LONGEST_LINE)) == "x" * LONGEST_LINE


def test_lists_are_on_lines_of_their_own():
    error = XCiTError("three are missing:\n  a\n  \x1b[2Jb\n" + "c" * 1000)
    first, a, b, c = str(error).split("\n")
    assert (first, a, b) == ("three are missing:", "  a", r"  \x1b[2Jb")
    assert len(c) == LONGEST_LINE
    assert printable_line("a\nb") == "a b"


def test_goes_to_another_process_whole():
    error = XCiTError("x" * 5000)
    assert pickle.loads(pickle.dumps(error)).args == error.args
