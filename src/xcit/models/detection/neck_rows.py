"""Computes the feature pyramid network and the convolutions of the region proposal network a few rows at a time.

See `map_rows.py` in the package `xcit.models`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torchvision.ops.misc import Conv2dNormActivation

from xcit.models.map_rows import ComputedRows, ConvRows, MapRows, NearestRows, SumRows, lateral_rows
from xcit.models.plain import is_anything_watched, is_watched

_MODULES = (
    *(FeaturePyramidNetwork, LastLevelMaxPool, RPNHead, Conv2dNormActivation),
    *(nn.ModuleList, nn.Sequential, nn.Conv2d, nn.ReLU),
)


def changed_module(*parts: nn.Module) -> str:
    """Returns the name of the first module in `parts` that is hooked, wrapped or replaced, or "" if no module is.

    If there are global hooks or an active dispatch mode, the result is "every module". If the result is "", the outputs
    may be computed from the weights, without calling the modules (see `plain.py` in `xcit.models`).
    """
    if is_anything_watched():
        return "every module"
    for part in parts:
        for name, module in part.named_modules():
            is_plain = all(type(value) in (nn.Parameter, type(None)) for value in module._parameters.values())
            if type(module) not in _MODULES or is_watched(module) or not is_plain:
                return f"{type(part).__name__} {name}".rstrip()
    return ""


def neck_rows(fpn: FeaturePyramidNetwork, maps: Sequence[MapRows]) -> list[MapRows]:
    """Returns the five maps of a feature pyramid network, of strides 4, 8, 16, 32 and 64.

    The maps are computed a few rows at a time. `changed_module(fpn)` must be "".

    Args:
        fpn: the network.
        maps: the four maps of the backbone's pyramid.
    """
    inner: MapRows | None = None
    levels: list[MapRows] = []
    for index in reversed(range(len(maps))):
        lateral = lateral_rows(maps[index], _conv(fpn.inner_blocks[index]))
        size = (lateral.height, lateral.width)
        inner = lateral if inner is None else SumRows(lateral, NearestRows(inner, size))
        levels.insert(0, ConvRows(inner, _conv(fpn.layer_blocks[index])))
    return [*levels, EverySecondRows(levels[-1])]


def proposal_rows(head: RPNHead, levels: Sequence[MapRows]) -> list[MapRows]:
    """Returns the features of each map in `levels`. They are the input of `proposal_outputs`.

    The features are computed a few rows at a time. `changed_module(head)` must be "".
    """
    found: list[MapRows] = []
    for level in levels:
        for block in head.conv:
            level = ConvRows(level, _conv(block), torch.relu_)
        found.append(level)
    return found


def proposal_outputs(head: RPNHead, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Computes logits and steps (box regression deltas) for the three anchors at each pixel, in float32.

    Args:
        head: the head of the region proposal network.
        rows: rows (k, W, C) of a map from `proposal_rows`.

    Returns:
        Logits (k, W, 3) and steps (k, W, 3, 4).
    """
    logits, steps = (F.linear(rows, layer.weight.flatten(1), layer.bias) for layer in (head.cls_logits, head.bbox_pred))
    return logits.float(), steps.float().unflatten(2, (-1, 4))


class EverySecondRows(ComputedRows):
    """Every second pixel of every second row of a map. This equals 1x1 max pooling with stride 2."""

    def __init__(self, source: MapRows) -> None:
        super().__init__(-(-source.height // 2), -(-source.width // 2), source.channels, [source])
        self._source = source

    def _compute(self, start: int, end: int) -> Tensor:
        return self._source.read(2 * start, 2 * end - 1)[::2, ::2].contiguous()

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values: the values of the rows that are read."""
        return 2 * rows * self._source.width * self.channels


def _conv(block: nn.Module) -> nn.Conv2d:
    conv = block[0] if isinstance(block, nn.Sequential) else block
    assert isinstance(conv, nn.Conv2d)
    return conv
