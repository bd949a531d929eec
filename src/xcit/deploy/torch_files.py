"""Writes `torch.export` programs (.pt2 files), and runs them with torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xcit.deploy.graphs import Graph
from xcit.deploy.quiet import quiet
from xcit.errors import XCiTError
from xcit.weights.pickles import brief


def write_program(graph: Graph, path: Path, texts: Mapping[str, str]) -> None:
    """Captures a graph and writes it to a .pt2 file; `texts` is the file's metadata."""
    with quiet(), torch.no_grad():
        program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.dynamic_shapes())
        torch.export.save(program, path, extra_files=dict(texts))


class ProgramRun:
    """A `torch.export` program on the CPU.

    Attributes:
        texts: the file's metadata.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        from xcit.deploy.sheet import EXPORT_KEY
        from xcit.zoo.statement import METADATA_KEY

        found = dict.fromkeys((METADATA_KEY, EXPORT_KEY), "")
        try:
            import torchvision  # noqa: F401  (registers the operators of detectors)

            with quiet():
                program = torch.export.load(path, extra_files=found)
                self._module = program.module()
        except Exception as error:  # torch's readers raise exceptions of many classes
            raise XCiTError(f"{path}: torch {torch.__version__} can't read it: {brief(error)}") from None
        self.texts = {key: text for key, text in found.items() if text}

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Computes the outputs. The inputs are in the order of the graph's inputs, and all tensors are on the CPU.

        Raises:
            XCiTError: if the images are too small for the program.
        """
        try:
            with torch.no_grad():
                return list(self._module(*inputs))
        except AssertionError as error:
            size = tuple(inputs[0].shape[2:])
            raise XCiTError(
                f"images of {size[0]}x{size[1]} pixels are too small for this program: {brief(error)}"
            ) from None
