"""Anchors, the reference boxes of the region proposal network: three at each pixel of each feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ANCHOR_STRIDES = (4, 8, 16, 32, 64)
"""Stride of each feature map in pixels of the image.

These strides are used even if the size of a map is rounded and its true stride is a little different.
"""

RATIOS = (0.5, 1.0, 2.0)
"""Ratios of an anchor's height to its width."""


def base_anchors(stride: int, scale: float, device: torch.device | None = None) -> Tensor:
    """Returns the three anchors (3, 4) with their centre at (0, 0), one for each of `RATIOS`.

    Each anchor has the area of a square with sides of `stride` * `scale` pixels. The coordinates are not rounded.
    """
    rows = []
    for ratio in RATIOS:
        half_width, half_height = (0.5 * stride * scale * factor for factor in (1 / math.sqrt(ratio), math.sqrt(ratio)))
        rows.append([-half_width, -half_height, half_width, half_height])
    return torch.tensor(rows, device=device)


def anchors_at(index: Tensor, map_width: int, stride: int, scale: float) -> Tensor:
    """Returns the anchors with the given indices in one feature map.

    Args:
        index: (n,). For the pixel (y, x) of the map, the index is (y * map_width + x) * 3 + the index of the ratio.
        map_width: width of the feature map in pixels of the map.
        stride: stride of the feature map in pixels of the image.
        scale: side of a square anchor divided by the stride.

    Returns:
        (n, 4) in pixels of the image. The centre of an anchor at the pixel (y, x) of the map is (y, x) * stride. This
        point is the upper left corner of the area that the pixel covers in the image.
    """
    place, ratio = index // len(RATIOS), index % len(RATIOS)
    row = place // map_width
    y, x = row * stride, (place - row * map_width) * stride  # the ONNX exporter does not support `% map_width`
    return base_anchors(stride, scale, index.device)[ratio] + torch.stack([x, y, x, y], dim=-1)


def all_anchors(map_sizes: Sequence[tuple[int, int]], scale: float, device: torch.device) -> Tensor:
    """Returns the anchors (n, 4) of all feature maps, one map after another. `map_sizes` are (height, width)."""
    return torch.cat(
        [
            anchors_at(torch.arange(height * width * len(RATIOS), device=device), width, stride, scale)
            for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True)
        ]
    )


def within(map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
    """Returns a mask, bool (n,), which is true for the anchors of `all_anchors` that are within an image.

    In a batch, a smaller image is padded further, to the size of the largest image. Anchors in this further padding are
    not trained.

    Args:
        map_sizes: (height, width) of each feature map.
        padded: height and width of the image in pixels, after the padding to multiples of 32, but without the further
            padding.
        device: device of the result.
    """
    parts = []
    for (height, width), stride in zip(map_sizes, ANCHOR_STRIDES, strict=True):
        rows = torch.arange(height, device=device) < math.ceil(padded[0] / stride)
        columns = torch.arange(width, device=device) < math.ceil(padded[1] / stride)
        parts.append((rows[:, None] & columns).flatten().repeat_interleave(len(RATIOS)))
    return torch.cat(parts)
