"""Anchors: the boxes to which the region proposal network adds its steps, three at each pixel of each feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ANCHOR_STRIDES = (4, 8, 16, 32, 64)
"""Stride of each feature map in pixels of the image. The strides are fixed, even if the maps' sizes are rounded."""

RATIOS = (0.5, 1.0, 2.0)
"""Ratios of an anchor's height to its width."""


def base_anchors(stride: int, scale: float, device: torch.device | None = None) -> Tensor:
    """Returns the anchors (3, 4) of a map around (0, 0), one per ratio, not rounded.

    Each has the area of a square with sides of `stride` * `scale` pixels.
    """
    rows = []
    for ratio in RATIOS:
        half_width, half_height = (0.5 * stride * scale * factor for factor in (1 / math.sqrt(ratio), math.sqrt(ratio)))
        rows.append([-half_width, -half_height, half_width, half_height])
    return torch.tensor(rows, device=device)


def anchors_at(index: Tensor, map_width: int, stride: int, scale: float) -> Tensor:
    """Returns the anchors with the given indices in one feature map.

    Args:
        index: (n,), (y * map_width + x) * 3 + the ratio's index.
        map_width: width of the feature map.
        stride: stride of the feature map.
        scale: side of a square anchor divided by the stride.

    Returns:
        (n, 4) in pixels of the image. The centre of an anchor at the map's pixel (y, x) is (y, x) * stride, which is
        the upper left corner of that pixel's area in the image.
    """
    place, ratio = index // len(RATIOS), index % len(RATIOS)
    row = place // map_width
    y, x = row * stride, (place - row * map_width) * stride  # ONNX's exporter does not support `%` with a size
    return base_anchors(stride, scale, index.device)[ratio] + torch.stack([x, y, x, y], dim=-1)


def all_anchors(map_sizes: Sequence[tuple[int, int]], scale: float, device: torch.device) -> Tensor:
    """Returns the anchors (n, 4) of all feature maps with these heights and widths, one map after another."""
    return torch.cat(
        [
            anchors_at(torch.arange(height * width * len(RATIOS), device=device), width, stride, scale)
            for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True)
        ]
    )


def within(map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
    """Returns which of `all_anchors` lie within an image of this padded height and width, bool (n,).

    In a batch, a smaller image is padded further, to the size of the largest one. Anchors there are not trained.
    """
    parts = []
    for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True):
        rows = torch.arange(height, device=device) < math.ceil(padded[0] / stride)
        columns = torch.arange(width, device=device) < math.ceil(padded[1] / stride)
        parts.append((rows[:, None] & columns).flatten().repeat_interleave(len(RATIOS)))
    return torch.cat(parts)
