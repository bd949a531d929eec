"""Contains the table of export formats, and recognises the format of a file."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from xcit.deploy.onnx_files import OnnxRun
from xcit.deploy.openvino_files import MODEL, OpenVinoRun
from xcit.deploy.torch_files import ProgramRun
from xcit.errors import XCiTError

Target = Literal["onnx", "openvino", "torch-export", "tensorrt", "web"]
"""The runtime that a file is exported for. "tensorrt" and "web" (onnxruntime-web) both use ONNX files."""


class Run(Protocol):
    """An exported graph that is ready to run."""

    texts: dict[str, str]

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Computes the outputs. The inputs are in the order of the graph's inputs, and all tensors are on the CPU."""
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of exported files.

    Attributes:
        suffix: the suffix of files in this format; "" if the format is a folder.
        packages: the packages that write and run files in this format.
        run: opens a file; its arguments are the path and the number of threads.
    """

    suffix: str
    packages: tuple[str, ...]
    run: Callable[[Path, int], Run]


_ONNX = Format(suffix=".onnx", packages=("onnx", "onnxscript", "onnxruntime"), run=OnnxRun)

FORMATS: dict[Target, Format] = {
    "onnx": _ONNX,
    "openvino": Format(suffix="", packages=("onnx", "onnxscript", "openvino"), run=OpenVinoRun),
    "torch-export": Format(suffix=".pt2", packages=(), run=ProgramRun),
    "tensorrt": _ONNX,
    "web": _ONNX,
}
"""The format of each target."""


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """Returns the format of an exported file or folder; None if `path` is not an exported file or folder.

    A file is recognised by its suffix, and an OpenVINO folder by its `model.xml`.
    """
    text = os.fspath(path)
    if text.endswith((".onnx", ".pt2")):
        return next(one for one in FORMATS.values() if one.suffix and text.endswith(one.suffix))
    if Path(text).name == MODEL or (Path(text) / MODEL).is_file():
        return FORMATS["openvino"]
    return None


def is_exported(model: object) -> bool:
    """Returns whether `model` is the path of an exported file or folder."""
    return isinstance(model, str | os.PathLike) and format_of(model) is not None


def open_run(path: Path, num_threads: int) -> Run:
    """Opens an exported file or folder, to be run with `num_threads` threads.

    Raises:
        XCiTError: if the path does not exist or is not an exported file, or if its runtime is not installed or can't
            read it.
    """
    found = format_of(path)
    if found is None:
        raise XCiTError(f"{path}: not an exported file: exported files end in .onnx or .pt2, or are OpenVINO folders")
    if not path.exists():
        raise XCiTError(f"{path}: no such file")
    return found.run(path, num_threads)
