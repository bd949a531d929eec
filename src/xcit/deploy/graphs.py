"""Models as graphs: modules of tensors in and tensors out, in the forms that runtimes compute fastest.

A graph has a copy of the model, fused: batch norms are part of the convolutions before them, LayerScale of the last
weights of each branch. XCA goes by the Gram matrix of the tokens where these are many (see `ops.forms`): a graph of one
size has the better form, a graph of every size has both and asks for the number of tokens.

Shapes: `B` batch, `C` channels, `h`, `w` an image's.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xcit import ops
from xcit.deploy.sheet import FeatureOutput, Sheet
from xcit.models import XCiT
from xcit.models.fused import FusedXCABlock
from xcit.zoo.kinds import DETECTOR

XCAForm = Literal["size", "sums", "tokens"]

PAD_TO = 32
"""Of which the sides of a detector's images are multiples."""

AXES = {0: "batch", 2: "height", 3: "width"}
"""The axes of images that are of any length in a graph of every size."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A module to be captured.

    Attributes:
        module: takes the inputs and gives a tuple of the outputs, float32 all (labels are int64).
        inputs: an example.
        input_names: of the inputs.
        output_names: of the outputs.
        axes: input -> axis -> the name of its length, of those that are not fixed.
        multiple_of: of which the height and width are multiples.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    multiple_of: int = 1

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """The axes as torch's exporter takes them, an entry an input."""
        least = 3  # torch asks whether the coarsest map has one pixel a side, and keeps the answer
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
    """What a graph does to values in 0..1 before all else: one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_graph(
    model: nn.Module, sheet: Sheet, *, normalization: Normalization | None, xca_by: XCAForm, dtype: torch.dtype
) -> Graph:
    """A model as the graph that a sheet describes.

    Args:
        model: in evaluation mode; it is left as it is.
        sheet: what the file will say of itself.
        normalization: what the graph begins with; none is nothing.
        xca_by: the form of XCA in a graph of every size, see `ops.xca_in_graph`.
        dtype: of weights and computation.
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
        axes["images"] = {axis: name for axis, name in axes["images"].items() if axis == 0}
    return Graph(
        module=module.eval(),
        inputs=_example(sheet),
        input_names=sheet.input_names,
        output_names=sheet.output_names,
        axes=axes,
        multiple_of=PAD_TO if sheet.kind is DETECTOR else 1,
    )


class _Normalized(nn.Module):
    """The graph's two ends: values to normalised ones in the precision of the weights, and outputs to float32."""

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
    """The same of a detector, which is told the image's size and scale, and whose labels are whole numbers."""

    def forward(self, images: Tensor, size: Tensor, scale: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        normalized = self._normalized(images)
        if self.mean is not None:  # what an image is filled up with is zero after that, not before
            height, width = images.shape[2:]
            inside = (torch.arange(height)[:, None] < size[0]) & (torch.arange(width) < size[1])
            normalized = normalized * inside.to(normalized.dtype)
        outputs: tuple[Tensor, ...] = self.body(normalized, size, scale)
        return outputs


class _Logits(nn.Module):
    """Logits of a classifier (B, K) or segmenter (B, K, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        logits: Tensor = self.model(images)
        return (logits,)


class _Features(nn.Module):
    """What `XCiT.extract_feat` gives."""

    def __init__(self, model: XCiT, features: FeatureOutput) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model.extract_feat(
            images, "backbone", out_type=self.features.out_type, out_indices=self.features.layers
        )
        assert isinstance(found, tuple)
        return found


def _example(sheet: Sheet) -> tuple[Tensor, ...]:
    """Inputs of a size whose sides stand in no relation to each other, from which nothing can be concluded."""
    patch = sheet.kind.backbone(sheet.config).patch_size
    height, width = sheet.facts.size or (max(7 * patch, 96), max(11 * patch, 128))
    if sheet.kind is DETECTOR:
        return torch.zeros(1, sheet.channels, 96, 160), torch.tensor([90.0, 150.0]), torch.ones(4)
    return (torch.zeros(2, sheet.channels, height, width),)
