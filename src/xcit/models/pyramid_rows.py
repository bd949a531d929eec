"""The pyramid of a backbone by rows: maps of strides 4, 8, 16 and 32 of an image of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xcit.models.fused import norm_line, with_numbers
from xcit.models.map_rows import DoubledRows, MapRows, ShrunkMapRows
from xcit.models.plain import is_anything_watched, is_watched
from xcit.models.pyramid import Shrink, TokenPyramid

_LAYERS = (nn.Sequential, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GELU, nn.Identity, Shrink, TokenPyramid)


def is_plain_pyramid(pyramid: TokenPyramid) -> bool:
    """Whether its layers may be computed from their weights instead of being called (see `plain.py`)."""
    return not is_anything_watched() and all(
        type(module) in _LAYERS
        and not is_watched(module)
        and all(type(value) in (nn.Parameter, type(None)) for value in module._parameters.values())
        for module in pyramid.modules()
    )


def pyramid_rows(pyramid: TokenPyramid, taps: Sequence[MapRows]) -> list[MapRows]:
    """The four maps of `pyramid` in evaluation, given the tokens (H, W, D) of its four blocks.

    Ask `is_plain_pyramid` first.
    """
    layers = (pyramid.stride4, pyramid.stride8, pyramid.stride16, pyramid.stride32)
    return [_level(layer, tap) for layer, tap in zip(layers, taps, strict=True)]


def _level(layer: nn.Module, tap: MapRows) -> MapRows:
    if isinstance(layer, Shrink):
        return ShrunkMapRows(tap, layer.factor)
    if isinstance(layer, nn.Identity):
        return tap
    assert isinstance(layer, nn.Sequential)
    first, last = layer[0], layer[-1]
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(last, nn.ConvTranspose2d)
    if first is last:
        return DoubledRows(tap, first)
    norm = layer[1]
    folded = fold_into_transposed(first, norm) if isinstance(norm, nn.BatchNorm2d) else first
    return DoubledRows(DoubledRows(tap, folded, torch.ops.aten.gelu_), last)


def fold_into_transposed(conv: nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> nn.ConvTranspose2d:
    """The transposed convolution and the batch norm after it, in evaluation, as one."""
    scale, shift = norm_line(norm)
    bias: Tensor | float = 0.0 if conv.bias is None else conv.bias.double()
    return with_numbers(conv, conv.weight * scale.view(1, -1, 1, 1), bias * scale + shift)
