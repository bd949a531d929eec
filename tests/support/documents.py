"""The documents as their readers use them: what stands in fences, and what is to be run of it.

A fence of the language `python` is run, and so are the commands of a `console` fence, which have a `$ ` before them. A
title such as `Needs a GPU` marks a fence that is not run; the site shows it above the code. A fence of another
language, or of none, is text. Names of a page's Python fences last to its end, and so do its files.
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
"""What a fence may need that the tests have not."""

_FENCE = re.compile(r'^```([\w-]*)(?: +title="([^"]*)")? *\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Fence:
    """A fenced block: where it is, its language, the title that marks it or none, and its text."""

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
        """Its text, on the lines that it has in the page, so that a traceback shows them."""
        return "\n" * self.line + self.text

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command of a console, and the lines shown below it.

        A backslash at its end joins a line to the next. Without a prompt in it, every line is a command.
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
    """All fences of a page, in order.

    Raises:
        AssertionError: if a line that begins a fence, or ends one, belongs to none.
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
    """What stands between single backticks in a page, outside of fences, each on one line."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def words_of(command: str) -> list[str]:
    """The words after `xcit` in a command, which torchrun or settings of the environment may start; no comments."""
    words = shlex.split(command, comments=True)
    return words[words.index("xcit") + 1 :]


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether lines are as a page shows them: `...` stands for any lines, and numbers may differ by 1%.

    Another processor rounds otherwise, and the last digit shown may then be another one.
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
