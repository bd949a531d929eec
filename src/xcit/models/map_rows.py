"""Feature maps that are computed a few rows at a time, and the layers that compute these maps.

Each row of a layer's output depends only on a few neighbouring rows of its input. So no map has to be in memory as a
whole. The caller reads rows of the last layer's map. To compute these rows, each layer reads the corresponding rows and
their halo from the layer before it. Up to rounding, the values are those of a computation on whole maps.

A layer keeps the rows of its last read in memory. If the rows are read from top to bottom, no row is computed twice. If
they are read in another order, the values are the same, but some rows are computed again.

Shapes: `C` channels, `W` width, `k` number of rows in one read. Rows have the shape (k, W, C), which is the memory
layout of an image with channels last.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops

BEHIND = 4
"""Number of additional rows that a layer keeps in memory: the rows directly above the rows of its last read.

If two layers read the same map, one of them may be a few rows behind the other, and still need these rows.
"""

NUMBERS_AT_ONCE = 2**21
"""Number of values in one stripe of the largest map. A stripe is the group of rows that are computed at once.

The number is large enough for full speed if the maps are in memory.
"""

Activation = Callable[[Tensor], Tensor]
"""An activation that works in place and returns its argument."""


class MapRows(Protocol):
    """Interface of a feature map (height, width, channels) that is read a few rows at a time."""

    @property
    def height(self) -> int:
        """Number of rows."""

    @property
    def width(self) -> int:
        """Number of pixels per row."""

    @property
    def channels(self) -> int:
        """Number of values per pixel."""

    def read(self, start: int, end: int) -> Tensor:
        """Returns the rows from `start` to `end` (exclusive) as a contiguous tensor (end - start, width, channels).

        The caller must not change the tensor.
        """


class TensorRows:
    """A map that is a tensor (height, width, channels) in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.height, self.width, self.channels = tensor.shape

    def read(self, start: int, end: int) -> Tensor:
        """Returns a view of the rows from `start` to `end` (exclusive)."""
        return self.tensor[start:end]


class ComputedRows:
    """Base class of the layers. A layer is a map with rows that are computed from the rows of other maps.

    Attributes:
        height: number of rows.
        width: number of pixels per row.
        channels: number of values per pixel.
        sources: the maps from which this map is computed.
    """

    def __init__(self, height: int, width: int, channels: int, sources: Sequence[MapRows]) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.sources = tuple(sources)
        self._kept: Tensor | None = None
        self._start = 0  # index of the first row that is kept

    def read(self, start: int, end: int) -> Tensor:
        """Returns the rows from `start` to `end` (exclusive). Rows kept from the last read are not computed again."""
        kept = self._kept
        if kept is None or not self._start <= start <= self._start + len(kept):
            kept, self._start = self._compute(start, end), start
        elif end > self._start + len(kept):
            known = self._start + len(kept)
            dropped = max(0, start - BEHIND - self._start)
            # The clone contains only the rows that are kept, so the other rows of the last read are freed before the
            # new rows are computed.
            kept = kept[dropped:].clone() if dropped else kept
            self._kept, self._start = kept, self._start + dropped
            kept = torch.cat([kept, self._compute(known, end)])
        self._kept = kept
        return kept[start - self._start : end - self._start]

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values that exist while `rows` rows are computed.

        The rows that are kept, and the temporary values of the sources, are not included.
        """
        return 2 * rows * self.width * self.channels

    def _compute(self, start: int, end: int) -> Tensor:
        raise NotImplementedError


class ConvRows(ComputedRows):
    """A convolution with an odd kernel size, and an optional activation. Zero padding keeps the size of the map."""

    def __init__(self, source: MapRows, conv: nn.Conv2d, activation: Activation | None = None) -> None:
        super().__init__(source.height, source.width, conv.out_channels, [source])
        self._source, self._conv, self._activation = source, conv, activation
        self._halo = conv.kernel_size[0] // 2

    def _compute(self, start: int, end: int) -> Tensor:
        conv, halo = self._conv, self._halo
        if halo == 0:
            found = ops.linear(self._source.read(start, end), conv.weight.flatten(1), conv.bias)
        else:
            rows = with_zero_rows(self._source, start - halo, end + halo)
            found = from_image(F.conv2d(as_image(rows), conv.weight, conv.bias, padding=(0, halo)))
        return found if self._activation is None else self._activation(found)

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values: the padded input rows and the output rows.

        Both are counted twice, because torch may copy them.
        """
        return 2 * rows * self.width * (self.channels + self._source.channels)


class DoubledRows(ComputedRows):
    """A 2x2 transposed convolution with stride 2 and an optional activation. It doubles height and width.

    Args:
        source: the map to which the transposed convolution is applied.
        weight: weight of the transposed convolution, (C, outputs, 2, 2).
        bias: (outputs,) or None.
        activation: applied to the output; None means no activation.
    """

    def __init__(
        self, source: MapRows, weight: Tensor, bias: Tensor | None, activation: Activation | None = None
    ) -> None:
        super().__init__(2 * source.height, 2 * source.width, weight.shape[1], [source])
        self._source, self._weight, self._bias, self._activation = source, weight, bias, activation

    def _compute(self, start: int, end: int) -> Tensor:
        first, last = start // 2, -(-end // 2)
        image = as_image(self._source.read(first, last))
        doubled = from_image(F.conv_transpose2d(image, self._weight, self._bias, stride=2))
        doubled = doubled[start - 2 * first : end - 2 * first]
        return doubled if self._activation is None else self._activation(doubled)

    def followed_by(self, conv: nn.Conv2d, activation: Activation | None = None) -> "DoubledRows":
        """Returns one transposed convolution that equals this layer followed by a 1x1 convolution.

        This layer must not have an activation. `activation` is applied after the 1x1 convolution.
        """
        assert self._activation is None
        matrix = conv.weight.flatten(1)
        weight = torch.einsum("ioyx,po->ipyx", self._weight, matrix)
        bias = conv.bias if self._bias is None else F.linear(self._bias, matrix, conv.bias)
        return DoubledRows(self._source, weight, bias, activation)


def lateral_rows(source: MapRows, conv: nn.Conv2d, activation: Activation | None = None) -> ComputedRows:
    """Returns a 1x1 convolution of `source`, a level of a pyramid, with an optional activation.

    If `source` is a transposed convolution, the result is one layer that combines both convolutions.
    """
    if isinstance(source, DoubledRows):
        return source.followed_by(conv, activation)
    return ConvRows(source, conv, activation)


class ShrunkMapRows(ComputedRows):
    """Max pooling over `factor` x `factor` pixels without padding.

    A side that is shorter than `factor` pixels is pooled to 1 pixel.
    """

    def __init__(self, source: MapRows, factor: int) -> None:
        self._down, self._across = min(factor, source.height), min(factor, source.width)
        super().__init__(source.height // self._down, source.width // self._across, source.channels, [source])
        self._source = source

    def _compute(self, start: int, end: int) -> Tensor:
        rows = self._source.read(start * self._down, end * self._down)
        return from_image(F.max_pool2d(as_image(rows), (self._down, self._across)))

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values: the input rows, counted twice."""
        return 2 * rows * self._down * self._source.width * self.channels


class ResizedRows(ComputedRows):
    """Bilinear interpolation to another size. The values equal those of `F.interpolate` on a contiguous image.

    Torch's kernel for channels last is not used, because it rounds the sampling positions differently. In large maps
    this makes a visible difference.
    """

    def __init__(self, source: MapRows, size: tuple[int, int], *, align_corners: bool = False) -> None:
        super().__init__(*size, source.channels, [source])
        self._source, self._align_corners = source, align_corners
        self._columns = interpolation(0, size[1], source.width, size[1], align_corners=align_corners)

    def _compute(self, start: int, end: int) -> Tensor:
        above, below, weight = interpolation(
            start, end, self._source.height, self.height, align_corners=self._align_corners
        )
        first = int(above[0])
        rows = self._source.read(first, int(below[-1]) + 1)
        if self._source.height != self.height:
            rows = _between(rows, 0, above - first, below - first, weight)
        return rows if self._source.width == self.width else _between(rows, 1, *self._columns)

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values in the two steps of the interpolation.

        The first step reads two input rows for each output row. The second step reads two pixels for each output pixel.
        """
        return rows * (2 * self._source.width + 2 * self.width) * self.channels


class NearestRows(ComputedRows):
    """Nearest-neighbour interpolation to another size. The values equal those of `F.interpolate`."""

    def __init__(self, source: MapRows, size: tuple[int, int]) -> None:
        super().__init__(*size, source.channels, [source])
        self._source = source
        self._rows, self._columns = (
            _nearest(*lengths) for lengths in ((source.height, size[0]), (source.width, size[1]))
        )

    def _compute(self, start: int, end: int) -> Tensor:
        numbers = self._rows[start:end]
        first = int(numbers[0])
        rows = self._source.read(first, int(numbers[-1]) + 1)
        wide = rows.index_select(1, self._columns.to(rows.device))
        return _rows_of(wide, numbers - first)


class SumRows(ComputedRows):
    """The sum of two maps of the same size."""

    def __init__(self, first: MapRows, second: MapRows) -> None:
        super().__init__(first.height, first.width, first.channels, [first, second])
        self._first, self._second = first, second

    def _compute(self, start: int, end: int) -> Tensor:
        return self._first.read(start, end) + self._second.read(start, end)


def interpolation(
    start: int, end: int, source_length: int, length: int, *, align_corners: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the source samples and the weights of linear interpolation along one axis.

    The positions are computed in float32, as in torch. Other rounding would make a visible difference in large maps.

    Args:
        start: index of the first output sample.
        end: one past the index of the last output sample.
        source_length: number of source samples along the axis.
        length: total number of output samples along the axis.
        align_corners: as in `F.interpolate`.

    Returns:
        Three tensors with one value per output sample: the index of the source sample before the output sample (int64),
        the index of the source sample after the output sample (int64), and the weight of the second of these source
        samples (float32).
    """
    position = torch.arange(start, end, dtype=torch.float32)
    if align_corners:
        scale = torch.tensor((source_length - 1) / (length - 1) if length > 1 else 0.0, dtype=torch.float32)
        position = scale * position
    else:
        scale = torch.tensor(source_length, dtype=torch.float32) / length
        position = (scale * (position + 0.5) - 0.5).clamp_(min=0)
    before = position.long().clamp_(max=source_length - 1)
    after = (before + 1).clamp_(max=source_length - 1)
    return before, after, (position - before).clamp_(0, 1)


def with_zero_rows(source: MapRows, start: int, end: int) -> Tensor:
    """Returns the rows from `start` to `end` (exclusive) of a map, with zeros for the rows outside the map."""
    first, last = max(0, start), min(end, source.height)
    rows = source.read(first, last)
    if first == start and last == end:
        return rows
    above, below = rows.new_zeros(first - start, *rows.shape[1:]), rows.new_zeros(end - last, *rows.shape[1:])
    return torch.cat([above, rows, below])


def as_image(rows: Tensor) -> Tensor:
    """Returns rows (k, W, C) as an image (1, C, k, W) with channels last, without a copy."""
    return rows.permute(2, 0, 1)[None]


def from_image(image: Tensor) -> Tensor:
    """Returns an image (1, C, k, W) as contiguous rows (k, W, C)."""
    return image[0].permute(1, 2, 0).contiguous()


def all_maps(*maps: MapRows) -> list[MapRows]:
    """Returns the maps and all maps from which they are computed. The result contains each map once."""
    found: dict[int, MapRows] = {}
    waiting = list(maps)
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += one.sources if isinstance(one, ComputedRows) else []
    return list(found.values())


def rows_of_a_stripe(last: MapRows, at_once: int = NUMBERS_AT_ONCE) -> int:
    """Returns how many rows of `last` to read at once.

    The number is chosen so that one stripe of the largest map from which `last` is computed has about `at_once` values.
    """
    row = max(one.width * one.channels * one.height / last.height for one in all_maps(last))
    return max(1, min(last.height, int(at_once / row)))


def numbers_held(last: MapRows, rows: int) -> int:
    """Returns the maximum number of values in memory while the map `last` is read `rows` rows at a time.

    The number includes all maps from which `last` is computed. It predicts the memory that a head needs.
    """
    kept = passing = 0
    for one in all_maps(last):
        num_rows = min(one.height, -(-rows * one.height // last.height) + 2 * BEHIND)
        kept += num_rows * one.width * one.channels
        passing = max(passing, one.workspace(num_rows) if isinstance(one, ComputedRows) else 0)
    return kept + passing


def _rows_of(rows: Tensor, numbers: Tensor) -> Tensor:
    return rows.index_select(0, numbers.to(rows.device))


def _between(rows: Tensor, dim: int, before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """Computes linear interpolation of rows (k, W, C) along the dimension `dim`, which is 0 or 1.

    `before`, `after` and `weight` are the results of `interpolation`, with indices into `rows`. The computation is in
    float32 or float64, because a weight in bfloat16 would have only two decimal digits.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    shape = [1, 1, 1]
    shape[dim] = -1
    first, second = (rows.index_select(dim, one.to(rows.device)).to(wide) for one in (before, after))
    return first.lerp_(second, weight.to(rows.device, wide).view(shape)).to(rows.dtype)


def _nearest(source_length: int, length: int) -> Tensor:
    """Returns, for each output pixel, the index of the source pixel that is copied to it, int64 (length,)."""
    scale = torch.tensor(source_length, dtype=torch.float32) / length
    return (torch.arange(length, dtype=torch.float32) * scale).long().clamp_(max=source_length - 1)
