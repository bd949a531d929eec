"""The snippets of documents run."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("interoperability.md", "weights.md", "large-files.md", "export.md")
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in NAMES}
SECTION = re.compile(r"^## ([^\n]*)\n((?:(?!^## ).)*?)```python\n(.*?)```", re.MULTILINE | re.DOTALL)
SNIPPETS = [(f"{page}: {found[1]}", found[3]) for page, text in PAGES.items() for found in SECTION.finditer(text)]


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_a_snippet_of_the_pages_on_other_tools_and_weights(title: str, code: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages' own
        exec(compile(code, title, "exec"), {})


def test_every_snippet_is_run() -> None:
    assert len(SNIPPETS) == sum(text.count("```python") for text in PAGES.values())


def test_the_snippet_of_the_page_on_any_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "any-resolution.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "any-resolution.md", "exec"), {})
    assert capsys.readouterr().out.startswith("500 x 700 pixels, ")
