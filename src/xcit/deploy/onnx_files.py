"""Writes ONNX files with torch's exporter, and runs them with ONNX Runtime."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xcit.deploy.graphs import Graph
from xcit.deploy.quiet import quiet
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.weights.pickles import brief, shortened

OPSET = 18
"""Default version of ONNX's operator set. It is also the oldest allowed version: torch's exporter is written for it."""


def newest_opset() -> int:
    """Returns the newest version of ONNX's operator set that the installed onnx supports."""
    need_packages("an ONNX file", "onnx")
    import onnx

    return int(onnx.defs.onnx_opset_version())


def write_onnx(graph: Graph, path: Path, texts: Mapping[str, str], opset: int) -> None:
    """Captures a graph and writes it to an ONNX file.

    Args:
        graph: the graph.
        path: the file to write.
        texts: the file's metadata.
        opset: version of ONNX's operator set.

    Raises:
        XCiTError: if the exporter can't write this version of the operator set.
    """
    need_packages("an ONNX file", "onnx", "onnxscript")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.module,
            graph.inputs,
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            dynamic_shapes=graph.dynamic_shapes(),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        written = program.model.opset_imports.get("")
        if written != opset:
            raise XCiTError(
                f"torch {torch.__version__} wrote operator set {written} instead of {opset}: set opset to {OPSET}"
            )
        program.model.metadata_props.update(texts)
        program.save(path, external_data=False)


class OnnxRun:
    """A session of ONNX Runtime on the CPU.

    Attributes:
        texts: the file's metadata.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        need_packages("running an ONNX file", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise XCiTError(f"{path}: ONNX Runtime {onnxruntime.__version__} can't read it: {_reason(error)}") from None
        self.texts: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Computes the outputs. The inputs are in the order of the graph's inputs, and all tensors are on the CPU."""
        names = (one.name for one in self._session.get_inputs())
        arrays = {name: value.contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, arrays)]


def _reason(error: Exception) -> str:
    """Returns the reason in an error message of ONNX Runtime, without file paths and lines of source code."""
    text = str(error).partition(" failed:")[2]
    newest = re.search(r"Opset (\d+) is under development.* till opset (\d+)", text)
    if newest:
        return (
            f"it has operator set {newest[1]}, but this version only reads operator sets up to {newest[2]}: export the "
            "model again with --opset"
        )
    return shortened(text.strip()) if text else brief(error)
