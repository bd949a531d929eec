"""Which of this package's extras brings a package that not every installation has."""

from importlib.util import find_spec

from xcit.errors import XCiTError

EXTRAS = {
    "timm": "train",
    "matplotlib": "train",
    "aiohttp": "train",
    "faster_coco_eval": "detection",
    "datasets": "hub",
    "pyarrow": "all",
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "openvino"), "export"),
    **dict.fromkeys(("imagecodecs", "openslide", "pyvips", "rasterio", "tifffile", "zarr"), "images"),
}
"""Package -> extra, as pyproject.toml has them."""


def missing_package(what: str, package: str) -> XCiTError:
    """The error for a package that is not installed: what needs it, and how to get it."""
    return XCiTError(f"{what} needs {package.replace('_', '-')}: {install_hint(package)}")


def install_hint(package: str) -> str:
    """The command that installs a package of `EXTRAS`."""
    return f"pip install 'xcit[{EXTRAS[package]}]'"


def need_packages(what: str, *packages: str) -> None:
    """Checks that packages of `EXTRAS` are installed, without importing them.

    Raises:
        XCiTError: if one is not.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing_package(what, package)
