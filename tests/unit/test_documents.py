"""The snippets of documents run."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "interoperability.md"
SNIPPETS = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("title", "code"), SNIPPETS, ids=[title for title, _ in SNIPPETS])
def test_a_snippet_of_the_page_on_other_tools(title: str, code: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other packages' own
        exec(compile(code, f"{PAGE.name}: {title}", "exec"), {})


def test_every_snippet_is_run() -> None:
    assert len(SNIPPETS) == PAGE.read_text(encoding="utf-8").count("```python")


def test_the_snippet_of_the_page_on_any_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "any-resolution.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "any-resolution.md", "exec"), {})
    assert capsys.readouterr().out.startswith("500 x 700 pixels, ")
