import subprocess
import sys
from importlib.resources import files
from types import ModuleType

import pytest

import xcit

HEAVY = ("torch", "torchvision", "numpy", "PIL", "timm", "huggingface_hub", "rich", "yaml")


def loaded_by(*arguments: str) -> list[str]:
    """Returns the heavy modules that a new Python process has imported when it ends."""
    report = f"import atexit, sys; atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))"
    script = f"{report}; {arguments[0]}"
    done = subprocess.run([sys.executable, "-c", script, *arguments[1:]], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()[-1:]


def test_import_needs_no_torch():
    assert loaded_by("import xcit; dir(xcit); xcit.XCiTError") == ["[]"]


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",), ("predict", "--help")])
def test_help_needs_no_torch(arguments):
    assert loaded_by("from xcit.cli import main; main()", *arguments) == ["[]"]


def test_python_m_xcit_is_xcit():
    done = subprocess.run([sys.executable, "-m", "xcit", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: xcit ")
    assert "predict" in done.stdout
    assert done.stderr == ""


def test_version():
    command = [sys.executable, "-m", "xcit", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"xcit, version {xcit.__version__}\n"
    )


@pytest.mark.parametrize("name", xcit.__all__)
def test_public_names(name):
    """Reads each name two times: the first access imports a module, and the module must not replace the function."""
    first, second = getattr(xcit, name), getattr(xcit, name)
    assert first is second
    assert callable(first)
    assert not isinstance(first, ModuleType)
    assert first.__doc__
    assert name in dir(xcit)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'xcit' has no attribute 'predictt'"):
        xcit.predictt  # noqa: B018
    assert not hasattr(xcit, "torch")


def test_package_is_typed():
    assert files("xcit").joinpath("py.typed").is_file()


def test_a_users_mistake_is_a_value_error():
    assert issubclass(xcit.XCiTError, ValueError)
