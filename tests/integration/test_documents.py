"""Tests the README and the pages of docs/: code and notebooks run without errors, and links have targets."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from documents import NEEDS, PAGES, ROOT, Fence, fences, inline_code, matches, words_of
from PIL import Image
from sklearn.datasets import load_sample_image

import xcit
from xcit.cli import _VERBS, _xcit
from xcit.cli.predict import packaged_images
from xcit.config import dotted_names
from xcit.data.named import FASHION_MNIST_CLASSES
from xcit.training.recipes import get_recipe
from xcit.zoo import fetch

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SMALLER = {
    "photos-to-classifier": {"num_images": 120, "num_epochs": 1},
    "what-a-model-looks-at": {"long_side": 64},
    "dino-features": {"num_train": 64, "num_val": 20, "num_epochs": 1},
}
"""Maps a notebook to the parameters that this test runs it with."""

LINK = re.compile(r"\]\(([^()\s]+)\)")


@pytest.fixture
def files_of_a_reader(tmp_path: Path) -> None:
    """Writes the files that the pages use: parts of a clone, and images with the names in the pages."""
    for name in ("src", "examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    photograph.thumbnail((96, 96))
    photograph.save("photo.jpg")
    photograph.convert("L").save("scan.tif")
    shutil.copytree(packaged_images()[0].parent, "photos")
    shutil.copyfile(fetch("packaged"), "garments.safetensors")
    for name in FASHION_MNIST_CLASSES[1:]:  # a folder can't be called T-shirt/top
        Path("garments-by-class", name).mkdir(parents=True)
        shutil.copy(Path("photos", f"{name.lower().replace(' ', '-')}.png"), Path("garments-by-class", name))
    for number, name in enumerate(("dark", "bright")):
        Path("photos-by-class", name).mkdir(parents=True)
        for index in range(8):
            noise = np.random.default_rng(index).integers(0, 100, (28, 28))
            Image.fromarray((noise + 150 * number).astype(np.uint8)).save(f"photos-by-class/{name}/{index}.png")


@pytest.mark.usefixtures("files_of_a_reader")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows(page: Path, request: pytest.FixtureRequest) -> None:
    command_line = request.getfixturevalue("xcit")
    names: dict[str, Any] = {}
    for fence in fences(page):
        if fence.title is None and fence.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # warnings of other packages
                exec(compile(fence.code, fence.place, "exec"), names)
        elif fence.title is None and fence.language == "console":
            run_console(fence, command_line)


def run_console(fence: Fence, command_line: Any) -> None:
    """Runs each command and compares its output with the page: `xcit` in this process, other commands in the shell."""
    for command, shown in fence.commands():
        where = f"{fence.place}: {command}"
        if command.startswith("xcit "):
            done = command_line(*words_of(command))
            assert done.status == int("could not be read" in done.err), f"{where}\n{done.err}"
            printed = done.out
            if shown and not matches(shown, printed.rstrip().splitlines()):
                printed += done.err  # a terminal shows output and errors
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            ran = subprocess.run(command, shell=True, env=os.environ | {"PATH": path}, capture_output=True, text=True)
            assert ran.returncode == 0, f"{where}\n{ran.stderr}"
            printed = ran.stdout
        if shown:
            assert matches(shown, printed.rstrip().splitlines()), f"{where}\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_says_what_it_needs_and_could_be_typed(page: Path) -> None:
    for fence in fences(page):
        if fence.language in ("", "text", "yaml", "javascript"):
            typed = re.search(r"^(\$|xcit|python|torchrun|make|pip) [a-z]", fence.text, re.MULTILINE)
            assert typed is None, f"{fence.place}: commands stand in a fence of the language console"
            continue
        assert fence.language in ("python", "console", "sh"), f"{fence.place}: a fence of the language {fence.language}"
        assert fence.title in NEEDS | ({None} if fence.language != "sh" else set()), f"{fence.place}: {fence.title}"
        if fence.language == "python":
            compile(fence.code, fence.place, "exec")
        if fence.language == "console":
            for command, _ in fence.commands():
                check_command(command, fence.place)


def check_command(command: str, where: str) -> None:
    """Checks that a verb accepts the options in a page's command, and that the recipe has the command's fields."""
    if re.match(r"(\$ )?python (benchmarks|examples)/", command):
        assert (ROOT / command.split("python ")[1].split()[0]).is_file(), f"{where}: {command}"
    if "xcit " not in command:
        return
    verb, *words = words_of(command)
    assert verb in _VERBS, f"{where}: no verb {verb}"
    if "RECIPE" in words or "[--FIELD" in words or any(word.endswith("config.yaml") for word in words):
        return
    context = click.Context(_xcit)
    called = _xcit.get_command(context, verb)
    assert called is not None
    takes_fields = verb in ("train", "config")
    try:
        called.make_parser(click.Context(called, ignore_unknown_options=takes_fields)).parse_args([*words])
    except click.NoSuchOption as error:
        pytest.fail(f"{where}: {command}: {error.format_message()}")
    except click.BadOptionUsage:
        pass  # a sentence may mention an option without its value
    if verb == "train" and words and words[0][0].isalnum():
        options = {option.removeprefix("--") for parameter in called.params for option in parameter.opts}
        known = options | dotted_names(get_recipe(words[0])).keys()
        for field in re.findall(r"--([\w.]+)", command):
            assert field in known or command.startswith(("torchrun", "$ torchrun")), f"{where}: no field {field}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_sentence_names_exists(page: Path) -> None:
    for code in inline_code(page):
        if re.match(r"xcit [a-z][a-z-]*( |$)", code):
            check_command(code, page.name)
        for name in re.findall(r"(?<![\w./-])xcit\.(\w+)", code):
            assert name in dir(xcit) or find_spec(f"xcit.{name}"), f"{page.name}: {code}"
        if found := re.match(r"(?:python )?((?:tests|benchmarks|examples)/[\w/.]+)", code):
            assert (ROOT / found[1]).exists(), f"{page.name}: {code}"


def nav_pages(entries: list[Any]) -> list[str]:
    return [
        page
        for entry in entries
        for value in entry.values()
        for page in ([value] if isinstance(value, str) else nav_pages(value))
    ]


def test_every_page_is_in_the_nav_once() -> None:
    listed = nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = ROOT / "docs"
    pages = [path.relative_to(docs).as_posix() for path in docs.rglob("*") if path.suffix in (".md", ".ipynb")]
    assert sorted(listed) == sorted(pages), "list each page of docs/ once in the nav of mkdocs.yml"


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as the documentation site and code hosts write them in links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_page_of_the_command_line_has_every_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks = importlib.import_module("hooks")
    page = SimpleNamespace(file=SimpleNamespace(src_uri=hooks.PAGE))
    text = hooks.on_page_markdown((ROOT / "docs" / hooks.PAGE).read_text(encoding="utf-8"), page)
    assert re.findall(r"^Usage: xcit ([\w-]+) ", text, re.MULTILINE) == [*_VERBS]


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {
        *re.findall(r"^::: xcit\.(\w+)$", pages, re.MULTILINE),
        *re.findall(r"^ +- (\w+)$", pages, re.MULTILINE),
    }
    assert {*xcit.__all__} <= documented


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (xcit.__version__, citation["version"]) == (version, version)
    dated = f"## [{version}] - {citation['date-released']}\n"
    assert dated in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if path.stem == "dino-features":
        request.getfixturevalue("fashion_mnist")
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    for index, cell in enumerate(cells):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*non-interactive")  # plt.show() draws nothing here
            exec(compile("".join(cell["source"]), f"{path.name}, code cell {index}", "exec"), names)
        if cell is parameters:
            assert names.keys() >= SMALLER[path.stem].keys()
            names |= SMALLER[path.stem]
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_small_and_without_errors(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert path.stat().st_size < 400_000
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not re.search(r"/(root|home|work)/", json.dumps(outputs))
