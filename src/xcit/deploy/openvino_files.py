"""Converts ONNX files to OpenVINO folders, and runs OpenVINO folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcit.deploy.quiet import quiet
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.weights.pickles import brief

MODEL = "model.xml"
"""The file in an OpenVINO folder that describes the graph; the weights are in model.bin."""

_SECTION = "xcit"


def convert_onnx(onnx: Path, folder: Path, texts: Mapping[str, str], *, halves: bool) -> None:
    """Converts an ONNX file to an OpenVINO folder.

    Args:
        onnx: path of the ONNX file.
        folder: path of an existing folder.
        texts: the metadata.
        halves: whether the weights are stored as float16.
    """
    need_packages("an OpenVINO folder", "openvino")
    import openvino

    with quiet():
        model = openvino.convert_model(onnx)
    for key, text in texts.items():
        model.set_rt_info(text, [_SECTION, key.replace(".", "_")])
    openvino.save_model(model, folder / MODEL, compress_to_fp16=halves)


class OpenVinoRun:
    """A model that OpenVINO compiles for the CPU; it computes in float32.

    Attributes:
        texts: the folder's metadata.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        need_packages("running an OpenVINO folder", "openvino")
        import openvino

        path = path / MODEL if path.is_dir() else path
        # Without the precision hint, OpenVINO would compute in bfloat16 on some processors.
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with quiet():
                core = openvino.Core()
                model = core.read_model(path)
                self.texts = _texts(model)
                self._compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise XCiTError(f"{path}: OpenVINO {openvino.__version__} can't read it: {brief(error)}") from None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Computes the outputs. The inputs are in the order of the graph's inputs, and all tensors are on the CPU."""
        found = self._compiled([value.contiguous().numpy() for value in inputs])
        return [torch.from_numpy(found[index].copy()) for index in range(len(self._compiled.outputs))]


def _texts(model: Any) -> dict[str, str]:
    from xcit.deploy.sheet import EXPORT_KEY
    from xcit.zoo.statement import METADATA_KEY

    texts = {}
    for key in (METADATA_KEY, EXPORT_KEY):
        place = [_SECTION, key.replace(".", "_")]
        if model.has_rt_info(place):
            texts[key] = model.get_rt_info(place).astype(str)
    return texts
