"""Anchors: the boxes from which the region proposal network steps, three at each pixel of each feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ANCHOR_STRIDES = (4, 8, 16, 32, 64)
"""Pixels of the image a pixel of each feature map; fixed, whatever the maps' rounded sizes are."""

RATIOS = (0.5, 1.0, 2.0)
"""Height by width."""


def base_anchors(stride: int, scale: float, device: torch.device | None = None) -> Tensor:
    """The anchors (3, 4) around (0, 0) of a map: `stride` * `scale` pixels a side, one for each ratio, not rounded."""
    rows = []
    for ratio in RATIOS:
        half_width, half_height = (0.5 * stride * scale * factor for factor in (1 / math.sqrt(ratio), math.sqrt(ratio)))
        rows.append([-half_width, -half_height, half_width, half_height])
    return torch.tensor(rows, device=device)


def anchors_at(index: Tensor, map_width: int, stride: int, scale: float) -> Tensor:
    """The anchors of some places of one feature map.

    Args:
        index: (n,), (y * map_width + x) * 3 + the ratio's index.
        map_width: of the feature map.
        stride: of the feature map.
        scale: side of a square anchor by the stride.

    Returns:
        (n, 4) in pixels of the image. The centre of an anchor at (y, x) is (y, x) * stride, the upper left corner of
        what the map's pixel sees.
    """
    place, ratio = index // len(RATIOS), index % len(RATIOS)
    row = place // map_width
    y, x = row * stride, (place - row * map_width) * stride  # ONNX's exporter has no remainder by a size
    return base_anchors(stride, scale, index.device)[ratio] + torch.stack([x, y, x, y], dim=-1)


def all_anchors(map_sizes: Sequence[tuple[int, int]], scale: float, device: torch.device) -> Tensor:
    """The anchors (n, 4) of all feature maps of these heights and widths, one map after another."""
    return torch.cat(
        [
            anchors_at(torch.arange(height * width * len(RATIOS), device=device), width, stride, scale)
            for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True)
        ]
    )


def within(map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
    """Which of `all_anchors` (n,) lie at a pixel that an image padded to this height and width reaches.

    In a batch a smaller image has padding beyond its own; anchors there are not trained.
    """
    parts = []
    for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True):
        rows = torch.arange(height, device=device) < math.ceil(padded[0] / stride)
        columns = torch.arange(width, device=device) < math.ceil(padded[1] / stride)
        parts.append((rows[:, None] & columns).flatten().repeat_interleave(len(RATIOS)))
    return torch.cat(parts)
