"""Turns models into graphs: modules with only tensors as inputs and outputs, ready to be captured by an exporter.

A graph contains a fused copy of the model: batch norms are folded into the convolutions before them, and LayerScale is
folded into the last weights of each branch. XCA (attention between channels) has two forms, see `ops.forms`: one is
faster for many tokens, and the other is faster for few tokens. A graph with a fixed image size contains the faster form
for that size. A graph for every size contains one form or both, see `XCAForm`.

Shapes: `B` is the batch size, `C` the number of channels, `h` and `w` are the height and width of an image.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xcit import ops
from xcit.deploy.sheet import FeatureOutput, Sheet
from xcit.errors import XCiTError
from xcit.models import XCiT
from xcit.models.detection.images import PAD_TO, pad_and_stack
from xcit.models.fused import FusedXCABlock
from xcit.zoo.kinds import DETECTOR

XCAForm = Literal["size", "sums", "tokens"]
"""The form of XCA in a graph for every image size; see the argument `by` of `ops.xca_in_graph`."""

AXES = {0: "batch", 2: "height", 3: "width"}
"""The axes of the images that may have any length in a graph for every image size."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A module that an exporter captures, with a description of its inputs and outputs.

    Attributes:
        module: maps the inputs to a tuple of outputs. All outputs are float32, except a detector's labels, which are
            int64.
        inputs: example inputs.
        input_names: names of the inputs.
        output_names: names of the outputs.
        axes: the axes of variable length: maps the name of each input to a dict from axis index to axis name.
        multiple_of: the number that the height and width of the images must be multiples of.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    multiple_of: int = 1

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Returns the `dynamic_shapes` for torch's exporter, one dict per input."""
        # With smaller images, the coarsest map could have one pixel, and torch would specialise the graph to this size.
        least = 3
        named = {"height": torch.export.Dim("rows", min=least), "width": torch.export.Dim("columns", min=least)}
        return tuple(
            {
                axis: torch.export.Dim.DYNAMIC if self.multiple_of == 1 else self.multiple_of * named[name]
                for axis, name in self.axes[one].items()
            }
            for one in self.input_names
        )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The normalization of pixels in 0..1 at the start of a graph: a mean and a standard deviation per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_graph(
    model: nn.Module, sheet: Sheet, *, normalization: Normalization | None, xca_by: XCAForm, dtype: torch.dtype
) -> Graph:
    """Builds the graph of a model.

    Args:
        model: a model in evaluation mode; it is not changed.
        sheet: the description that the file will contain.
        normalization: the normalization at the start of the graph; None means no normalization.
        xca_by: the form of XCA in a graph for every image size; it is ignored if the sheet has a fixed size.
        dtype: dtype of the weights and of the computation.
    """
    network: Any = model
    fused: Any = network.fuse()
    fused = (copy.deepcopy(fused) if fused is model else fused).cpu().to(dtype)
    for block in fused.modules():
        if isinstance(block, FusedXCABlock):
            block.form = partial(ops.xca_in_graph, by=xca_by)
    axes = {"images": dict(AXES)}
    if sheet.kind is DETECTOR:
        from xcit.deploy.detector_graph import DetectorGraph

        module: nn.Module = _NormalizedDetector(DetectorGraph(fused), normalization, dtype)
        del axes["images"][0]  # one image at a time
        axes |= {"size": {}, "scale": {}}
    else:
        features = sheet.facts.features
        module = _Normalized(_Logits(fused) if features is None else _Features(fused, features), normalization, dtype)
    if sheet.facts.size is not None:
        del axes["images"][2], axes["images"][3]
    return Graph(
        module=module.eval(),
        inputs=_example(sheet),
        input_names=sheet.input_names,
        output_names=sheet.output_names,
        axes=axes,
        multiple_of=PAD_TO if sheet.kind is DETECTOR else 1,
    )


class _Normalized(nn.Module):
    """Normalises the images, converts them to the dtype of the weights, and converts the outputs to float32."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, body: nn.Module, normalization: Normalization | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.dtype = body, dtype
        for name in ("mean", "std"):
            values = None if normalization is None else torch.tensor(getattr(normalization, name)).view(-1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.float() for one in self.body(self._normalized(images)))

    def _normalized(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        return images.to(self.dtype)


class _NormalizedDetector(_Normalized):
    """Normalises an image, and passes it to the detector with its size and scale; does not convert the outputs."""

    def forward(self, images: Tensor, size: Tensor, scale: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        normalized = self._normalized(images)
        if self.mean is not None:  # the normalization changes the padding, but the model expects zeros in the padding
            height, width = images.shape[2:]
            inside = (torch.arange(height)[:, None] < size[0]) & (torch.arange(width) < size[1])
            normalized = normalized * inside.to(normalized.dtype)
        outputs: tuple[Tensor, ...] = self.body(normalized, size, scale)
        return outputs


class _Logits(nn.Module):
    """Computes the logits of a classifier (B, K) or a segmenter (B, K, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        logits: Tensor = self.model(images)
        return (logits,)


class _Features(nn.Module):
    """Computes the features that `XCiT.extract_feat` returns."""

    def __init__(self, model: XCiT, features: FeatureOutput) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model.extract_feat(
            images, "backbone", out_type=self.features.out_type, out_indices=self.features.layers
        )
        assert isinstance(found, tuple)
        return found


def inputs_of(sheet: Sheet, images: Tensor) -> tuple[Tensor, ...]:
    """Returns the inputs of a graph for images (B, C, h, w). A detector's image is padded, and its scale is 1.

    Raises:
        XCiTError: if there are several images for a detector, or its image does not fit into the fixed size.
    """
    if sheet.kind is not DETECTOR:
        return (images,)
    height, width = images.shape[2:]
    fixed = sheet.facts.size
    if len(images) != 1:
        raise XCiTError(f"a detector takes one image at a time, not {len(images)}")
    if fixed is not None and (height > fixed[0] or width > fixed[1]):
        raise XCiTError(f"an image of {height}x{width} pixels does not fit into {fixed[0]}x{fixed[1]}")
    return pad_and_stack([images[0]], fixed), torch.tensor([height, width], dtype=torch.float32), torch.ones(4)


def _example(sheet: Sheet) -> tuple[Tensor, ...]:
    """Returns example inputs for the exporter.

    Height and width differ, so that the exporter does not conclude that they are always equal.
    """
    patch = sheet.kind.backbone(sheet.config).patch_size
    height, width = sheet.facts.size or (max(7 * patch, 96), max(11 * patch, 128))
    if sheet.kind is DETECTOR:
        height, width = sheet.facts.size or (96, 160)
        return torch.zeros(1, sheet.channels, height, width), torch.tensor([90.0, 150.0]), torch.ones(4)
    return (torch.zeros(2, sheet.channels, height, width),)
