"""Reads the documents: finds the fenced code blocks ("fences") of a page, and their commands.

The tests run a fence of the language `python`, and the commands of a `console` fence, which begin with `$ `. A fence
with a title such as `Needs a GPU` is not run; the site shows the title above the code. A fence of another language, or
without a language, is text. All fences of a page share their Python names and their files.
"""

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")])

NEEDS = {
    "Needs a GPU",
    "Needs a few minutes",
    "Needs a minute",
    "Needs a network",
    "Needs Fashion-MNIST",
    "Needs Fashion-MNIST and an hour",
    "Needs ImageNet",
    "Needs TensorRT",
    "Needs an exported file",
    "Needs published weights",
    "Needs scikit-learn and a minute",
    "Needs your data",
}
"""Titles of fences that the tests can't run."""

_FENCE = re.compile(r'^```([\w-]*)(?: +title="([^"]*)")? *\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A fenced block: its position in the page, its language, its title or None, and its text."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def code(self) -> str:
        """The text after empty lines, so that a traceback shows the line numbers of the page."""
        return "\n" * self.line + self.text

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yields each command of a console fence, and the output lines that the page shows below the command.

        A line that ends with a backslash continues on the next line. In a fence without a prompt (`$ `), every line is
        a command.
        """
        command, shown = "", list[str]()
        prompt = "$ " if re.search(r"^\$ ", self.text, re.MULTILINE) else ""
        for line in re.sub(r"\\\n *", "", self.text).splitlines():
            if line.startswith(prompt):
                if command:
                    yield command, shown
                command, shown = line.removeprefix("$ "), []
            else:
                shown.append(line)
        yield command, shown


def fences(page: Path) -> list[Fence]:
    """Returns all fences of a page, in order.

    Raises:
        AssertionError: if a line with ``` does not begin or end a fence that could be read.
    """
    text = page.read_text(encoding="utf-8")
    found = [
        Fence(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match[1],
            title=match[2],
            text=match[3],
        )
        for match in _FENCE.finditer(text)
    ]
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), f"{page}: a fence that is not understood"
    return found


def inline_code(page: Path) -> list[str]:
    """Returns the texts between single backticks in a page, outside of fences, with line breaks as spaces."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def words_of(command: str) -> list[str]:
    """Returns the words after `xcit` in a command, without comments. torchrun or variables may be before `xcit`."""
    words = shlex.split(command, comments=True)
    return words[words.index("xcit") + 1 :]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Returns whether output equals the lines that a page shows: `...` matches any lines, and numbers may differ by 1%.

    Another processor may round differently, so the last digit in the page may differ.
    """
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(matches(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and _same_line(shown[0], printed[0]) and matches(shown[1:], printed[1:])


def _same_line(shown: str, printed: str) -> bool:
    words, found = (re.split(r"[\s,]+", line.strip()) for line in (shown, printed))
    return len(words) == len(found) and all(map(_same_word, words, found))


def _same_word(shown: str, printed: str) -> bool:
    try:
        numbers = [float(word.strip("%(),;")) for word in (shown, printed)]
    except ValueError:
        return shown == printed
    return math.isclose(*numbers, rel_tol=0.01)
