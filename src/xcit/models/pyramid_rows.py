"""Computes the pyramid of a backbone a few rows at a time: maps of strides 4, 8, 16 and 32 of an image of any size."""

from collections.abc import Sequence

import torch
from torch import nn

from xcit.models.map_rows import DoubledRows, MapRows, ShrunkMapRows
from xcit.models.plain import is_all_plain
from xcit.models.pyramid import Shrink, TokenPyramid

_LAYERS = (nn.Sequential, nn.ConvTranspose2d, nn.GELU, nn.Identity, Shrink, TokenPyramid)


def is_plain_pyramid(pyramid: TokenPyramid) -> bool:
    """Returns whether `pyramid_rows` may be used for the pyramid.

    It may be used if the batch norms are folded, and if the layers may be computed from their weights instead of being
    called (see `plain.py`).
    """
    return is_all_plain(pyramid, _LAYERS)


def pyramid_rows(pyramid: TokenPyramid, taps: Sequence[MapRows]) -> list[MapRows]:
    """Returns the four maps of a fused model's pyramid for one image, as maps that are computed a few rows at a time.

    `is_plain_pyramid(pyramid)` must be true.

    Args:
        pyramid: the pyramid.
        taps: the tokens (H, W, D) after each of the four blocks.
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
    if first is not last:
        tap = DoubledRows(tap, first.weight, first.bias, torch.ops.aten.gelu_)
    return DoubledRows(tap, last.weight, last.bias)
