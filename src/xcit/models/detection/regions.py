"""Features of regions: each box reads the map that suits its size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xcit.models.pyramid import STRIDES

_SMALLEST = 56
"""Pixels from which on a box's side, the root of its area, belongs to the second map, twice as many to the third."""


def region_levels(boxes: Tensor) -> Tensor:
    """Which of the four maps (n,) boxes (n, 4) read: floor(log2(side / 56 + 1e-6)), from 0 to 3."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / _SMALLEST + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).to(torch.int64)


def region_features(maps: Sequence[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
    """RoIAlign with aligned corners of pixels and as many samples as a box has pixels of its map.

    Args:
        maps: of strides 4, 8, 16 and 32, each (B, C, height, width); further ones are not read.
        boxes: of each image, (n_i, 4) in pixels.
        size: pixels a side of what is cut out.

    Returns:
        (sum of n_i, C, size, size), image after image.
    """
    counts = torch.tensor([len(own) for own in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0])
    return pool_regions(maps, torch.cat([images[:, None], torch.cat(list(boxes))], dim=1), size)


def pool_regions(maps: Sequence[Tensor], regions: Tensor, size: int) -> Tensor:
    """`region_features` of regions (n, 5): the number of the image, and the box."""
    from torchvision.ops import roi_align

    levels = region_levels(regions[:, 1:])
    places, pooled = [], []
    for level, stride in enumerate(STRIDES):
        own = (levels == level).nonzero().squeeze(1)
        places.append(own)
        # A map that no box reads takes part all the same: else its convolution would have no gradient in one process.
        pooled.append(roi_align(maps[level], regions[own], size, 1 / stride, sampling_ratio=0, aligned=True))
    return torch.cat(pooled)[torch.cat(places).argsort()]
