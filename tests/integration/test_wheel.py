"""Tests that the wheel contains all files that the commands and the demo need, but no benchmarks and no tests."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xcit.cli import _VERBS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, *arguments: object) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_help_from_the_wheel(installed: Path) -> None:
    code = (
        "import runpy, sys; import xcit; assert xcit.__file__.startswith(sys.argv[1]), xcit.__file__\n"
        "for verb in sys.argv[2:]:\n"
        "    sys.argv = ['xcit', *([] if verb == '-' else [verb]), '--help']\n"
        "    try: runpy.run_module('xcit', run_name='__main__')\n"
        "    except SystemExit as ended: assert ended.code == 0, verb\n"
    )
    printed = run(installed, "-c", code, installed, "-", *_VERBS)
    assert printed.count("Usage: xcit ") == 1 + len(_VERBS)


def test_the_demo_from_the_wheel(installed: Path) -> None:
    assert "10 of 10 right" in run(installed, ROOT / "examples" / "demo.py")


def test_nothing_else_is_in_the_wheel(installed: Path) -> None:
    tops = {path.name for path in installed.iterdir()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"xcit"}
    assert not list(installed.rglob("*triton*")) and not list(installed.rglob("*kernels*"))
