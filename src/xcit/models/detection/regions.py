"""Features of regions: each box reads the map that suits its size.

RoIAlign samples a box on a regular grid, bilinearly, and takes the mean in each cell. Both act on rows and on columns
apart, so on a CPU it is two products of matrices a box, of the part of the map that the box touches. That part may come
from anywhere (see `Level`): a map need not lie in memory.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from xcit.models.pyramid import STRIDES
from xcit.models.stripes import spans

_SMALLEST = 56
"""Pixels from which on a box's side, the root of its area, belongs to the second map, twice as many to the third."""

_NUMBERS_AT_ONCE = 2**22
"""Of a map that a box reads at once: 16 MB."""

_BOXES_AT_ONCE = 256
"""Whose weights are computed together."""


class Level(Protocol):
    """A feature map of one image, of which parts are read."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Number of pixels per row."""

    @property
    def channels(self) -> int:
        """Number of values per pixel."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Rows top..bottom of the columns left..right, (bottom - top, right - left, C), not to be changed."""


class TensorLevel:
    """A map (C, height, width) that is a tensor."""

    def __init__(self, features: Tensor) -> None:
        self._features = features.permute(1, 2, 0)
        self.channels, self.height, self.width = features.shape

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns a view of rows start..end."""
        return self._features[top:bottom, left:right]


class _Axis(NamedTuple):
    """What boxes read along one axis: pixels first..end, weighted by (n, size, longest)."""

    first: list[int]
    end: list[int]
    weights: Tensor


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
    levels = maps[: len(STRIDES)]
    if levels[0].device.type == "cpu" and not any(level.requires_grad for level in levels):
        return torch.cat(
            [
                window_features([TensorLevel(level[image]) for level in levels], own, size)
                for image, own in enumerate(boxes)
            ]
        )
    counts = torch.tensor([len(own) for own in boxes])
    images = torch.arange(len(boxes)).repeat_interleave(counts).to(boxes[0])
    return pool_regions(maps, torch.cat([images[:, None], torch.cat(list(boxes))], dim=1), size)


def pool_regions(maps: Sequence[Tensor], regions: Tensor, size: int) -> Tensor:
    """Like `region_features`, by torchvision's RoIAlign, for regions (n, 5): the number of the image, and the box."""
    from torchvision.ops import roi_align

    level_of = region_levels(regions[:, 1:])
    places, pooled = [], []
    for level, stride in enumerate(STRIDES):
        own = (level_of == level).nonzero().squeeze(1)
        places.append(own)
        # A map that no box reads takes part all the same: else its convolution would have no gradient in one process.
        pooled.append(roi_align(maps[level], regions[own], size, 1 / stride, sampling_ratio=0, aligned=True))
    return torch.cat(pooled)[torch.cat(places).argsort()]


def window_features(levels: Sequence[Level], boxes: Tensor, size: int) -> Tensor:
    """As `region_features`, of one image whose maps are read part by part.

    Args:
        levels: of strides 4, 8, 16 and 32.
        boxes: (n, 4) in pixels.
        size: pixels a side of what is cut out.

    Returns:
        (n, C, size, size), channels last as they lie.
    """
    boxes = boxes.cpu()  # where the windows are cut out
    level_of = region_levels(boxes)
    pooled = levels[0].window(0, 1, 0, 1).new_zeros(len(boxes), size, size, levels[0].channels)
    for number, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
        for own in (level_of == number).nonzero().squeeze(1).split(_BOXES_AT_ONCE):
            for index, features in zip(own.tolist(), _of_level(level, boxes[own], size, stride), strict=True):
                if features is not None:
                    pooled[index] = features
    return pooled.permute(0, 3, 1, 2)


def _of_level(level: Level, boxes: Tensor, size: int, stride: int) -> Iterator[Tensor | None]:
    """Of each box (size, size, C); none of one that has no pixel."""
    x = _axis(boxes[:, 0], boxes[:, 2], size, stride, level.width)
    y = _axis(boxes[:, 1], boxes[:, 3], size, stride, level.height)
    for box in range(len(boxes)):
        (top, bottom), (left, right) = (y.first[box], y.end[box]), (x.first[box], x.end[box])
        if top >= bottom or left >= right:
            yield None
            continue
        rows: Tensor | None = None
        rows_at_once = max(1, _NUMBERS_AT_ONCE // ((right - left) * level.channels))
        for start, end in spans(bottom - top, rows_at_once):
            window = level.window(top + start, top + end, left, right)
            weights = y.weights[box, :, start:end].to(window)
            part = (weights @ window.flatten(1)).view(size, right - left, -1)
            rows = part if rows is None else rows + part
        assert rows is not None
        yield x.weights[box, :, : right - left].to(rows) @ rows


def _axis(low: Tensor, high: Tensor, size: int, stride: int, length: int) -> _Axis:
    """The weights of boxes from `low` to `high` (n,), in pixels of the image, along an axis of a map of this length.

    Places are computed in the boxes' precision and in the order of torchvision's operator: the number of samples jumps
    where a side is a whole number of pixels.
    """
    start = low * (1 / stride) - 0.5
    extent = high * (1 / stride) - 0.5 - start
    cell = extent / size
    counts = torch.where(extent.isfinite(), cell.ceil(), torch.zeros_like(cell)).clamp(min=0).to(torch.int64)
    ends = (counts * size).cumsum(0)
    box = torch.arange(len(low)).repeat_interleave(counts * size)
    number = torch.arange(len(box)) - (ends - counts * size)[box]
    of_cell = number // counts[box]
    within = (number - of_cell * counts[box]).to(low.dtype) + 0.5
    place = start[box] + of_cell.to(low.dtype) * cell[box] + within * cell[box] / counts[box].to(low.dtype)
    is_outside = (place < -1) | (place > length)
    place = place.clamp(0, length - 1)
    pixel = place.to(torch.int64)
    share = place - pixel.to(place.dtype)
    following = (pixel + 1).clamp(max=length - 1)
    # Places rise along a box, so that its first and last sample say which pixels it reads.
    is_empty = counts == 0
    padded, after = (torch.cat([values, values.new_zeros(1)]) for values in (pixel, following))
    first = padded[(ends - counts * size)].masked_fill(is_empty, 0)
    end = (after[(ends - 1).clamp(min=0)] + 1).masked_fill(is_empty, 0)
    longest = int((end - first).max()) if len(low) else 0
    weights = low.new_zeros(len(low) * size * longest)
    part = ((~is_outside).to(low.dtype)) / counts[box].to(low.dtype)
    origin = (box * size + of_cell) * longest - first[box]
    weights.scatter_add_(0, origin + pixel, (1 - share) * part)
    weights.scatter_add_(0, origin + following, share * part)
    return _Axis(first.tolist(), end.tolist(), weights.view(len(low), size, longest))
