"""Optional packages, and the pip extras of `xcit` that install them."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from xcit.errors import XCiTError

EXTRAS = {
    "timm": "train",
    "matplotlib": "train",
    "aiohttp": "train",
    "faster_coco_eval": "detection",
    "datasets": "hub",
    "peft": "lora",
    "pyarrow": "all",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "openvino"), "export"),
    **dict.fromkeys(("imagecodecs", "openslide", "pyvips", "rasterio", "tifffile", "zarr"), "images"),
}
"""Maps each optional package to the extra in pyproject.toml that installs it."""


def missing_package(what: str, package: str) -> XCiTError:
    """Returns the error for a missing package. Its message says how to install the package.

    Args:
        what: the feature that needs the package.
        package: a package of `EXTRAS`.
    """
    return XCiTError(f"{what} needs {package.replace('_', '-')}: {install_hint(package)}")


def imported(package: str, what: str) -> Any:
    """Imports and returns a package of `EXTRAS`.

    Args:
        package: the package.
        what: the feature that needs the package, for the error message.

    Raises:
        XCiTError: if the package is not installed or can't be imported.
    """
    try:
        return import_module(package)
    except ImportError:
        raise missing_package(what, package) from None


def install_hint(package: str) -> str:
    """Returns the command that installs a package of `EXTRAS`."""
    return f"pip install 'xcit[{EXTRAS[package]}]'"


def need_packages(what: str, *packages: str) -> None:
    """Checks that packages of `EXTRAS` are installed, without importing them.

    Args:
        what: the feature that needs the packages, for the error message.
        packages: the packages.

    Raises:
        XCiTError: if one of the packages is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing_package(what, package)
