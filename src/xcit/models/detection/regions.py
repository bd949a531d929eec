"""Computes the features of boxes by RoIAlign. The size of a box determines which feature map is read for the box.

RoIAlign divides a box into cells. It samples the map on a regular grid in the box, by bilinear interpolation, and
computes the mean of the samples in each cell. The sampling and the mean can both be computed along rows and columns
separately. So on a CPU, the features of a box are computed by two matrix products with the part of the map that the box
covers. A `Level` may read this part from a file, so that the map need not be in memory.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from xcit.models.pyramid import STRIDES
from xcit.models.stripes import spans

_SMALLEST = 56
"""`region_levels` divides the side of a box, in pixels of the image, by this number.

The side is the square root of the box's area. A box reads the first map if its side is below 2 * 56 pixels, the second
map if its side is below 4 * 56, the third map if its side is below 8 * 56, and otherwise the fourth map.
"""

_NUMBERS_AT_ONCE = 2**22
"""Maximum number of values of a map that are read at once for a box. In float32, they take 16 MB."""

_BOXES_AT_ONCE = 256
"""Number of boxes for which interpolation weights are computed at once."""


class Level(Protocol):
    """Interface of a feature map (C, height, width) of one image, from which rectangular parts are read."""

    @property
    def height(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Number of pixels per row."""

    @property
    def channels(self) -> int:
        """Number of values per pixel."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns the rows from `top` to `bottom` (exclusive) of the columns from `left` to `right` (exclusive).

        The shape is (bottom - top, right - left, C). The caller must not change the tensor.
        """


class TensorLevel:
    """A feature map (C, height, width) that is a tensor in memory."""

    def __init__(self, features: Tensor) -> None:
        self._features = features.permute(1, 2, 0)
        self.channels, self.height, self.width = features.shape

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns a view of this part of the map."""
        return self._features[top:bottom, left:right]


class _Axis(NamedTuple):
    """The pixels of a map that n boxes read along one axis, and the weights of these pixels.

    Box i reads the pixels from first[i] to end[i] (exclusive). The weights are (n, size, longest): for each box and
    each output pixel, the weights of the pixels from first[i] on. `longest` is the largest number of pixels of a box.
    """

    first: list[int]
    end: list[int]
    weights: Tensor


def region_levels(boxes: Tensor) -> Tensor:
    """Returns the index of the map that each of the boxes (n, 4) reads, int64 (n,).

    The index is floor(log2(side / 56 + 1e-6)), clamped to 0..3. The side is the square root of the box's area.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (side / _SMALLEST + 1e-6).log2().floor().clamp(0, len(STRIDES) - 1).to(torch.int64)


def region_features(maps: Sequence[Tensor], boxes: Sequence[Tensor], size: int) -> Tensor:
    """Computes the features of boxes by RoIAlign, with `aligned=True` and about one sample per pixel of the map.

    Args:
        maps: maps of strides 4, 8, 16 and 32, each (B, C, height, width); further maps are not read.
        boxes: the boxes of each image, (n_i, 4) in pixels.
        size: pixels per side of the output.

    Returns:
        (sum of n_i, C, size, size), one image after another.
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
    """Computes the same features as `region_features`, with torchvision's RoIAlign.

    Args:
        maps: as in `region_features`.
        regions: (n, 5), the index of the image and then the box.
        size: pixels per side of the output.
    """
    from torchvision.ops import roi_align

    level_of = region_levels(regions[:, 1:])
    places, pooled = [], []
    for level, stride in enumerate(STRIDES):
        own = (level_of == level).nonzero().squeeze(1)
        places.append(own)
        # RoIAlign also runs on a map that no box reads. So in distributed training, the convolution of the map gets
        # gradients in every process.
        pooled.append(roi_align(maps[level], regions[own], size, 1 / stride, sampling_ratio=0, aligned=True))
    return torch.cat(pooled)[torch.cat(places).argsort()]


def window_features(levels: Sequence[Level], boxes: Tensor, size: int) -> Tensor:
    """Computes the same features as `region_features`, for one image and from maps that are read in parts.

    Args:
        levels: maps of strides 4, 8, 16 and 32.
        boxes: (n, 4) in pixels.
        size: pixels per side of the output.

    Returns:
        (n, C, size, size), in the channels-last format.
    """
    boxes = boxes.cpu()  # the part of the map that a box reads is chosen on the CPU
    level_of = region_levels(boxes)
    pooled = levels[0].window(0, 1, 0, 1).new_zeros(len(boxes), size, size, levels[0].channels)
    for number, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
        for own in (level_of == number).nonzero().squeeze(1).split(_BOXES_AT_ONCE):
            for index, features in zip(own.tolist(), _of_level(level, boxes[own], size, stride), strict=True):
                if features is not None:
                    pooled[index] = features
    return pooled.permute(0, 3, 1, 2)


def _of_level(level: Level, boxes: Tensor, size: int, stride: int) -> Iterator[Tensor | None]:
    """Yields the features (size, size, C) of each box from one map, or None for a box that covers no pixels."""
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
    """Computes the interpolation weights of boxes along one axis of a map.

    A box is divided into cells, one for each output pixel. The number of samples in a cell is the side of the cell, in
    pixels of the map, rounded up. So a small rounding error could change the number of samples. To avoid this,
    positions are computed in the dtype of the boxes, with the same order of operations as in torchvision's operator.

    Args:
        low: (n,), coordinates of the boxes' left or upper edges, in pixels of the image.
        high: (n,), coordinates of the boxes' right or lower edges, in pixels of the image.
        size: number of output pixels along the axis.
        stride: stride of the map in pixels of the image.
        length: number of pixels of the map along the axis.
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
    # Positions increase along a box. So the first and the last sample of a box determine which pixels the box reads.
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
