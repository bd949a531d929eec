"""A 3x3 convolution of concatenated maps, some of which are interpolated from a lower resolution, at less cost.

A 3x3 convolution is the sum of nine taps, each of which is a 1x1 convolution of the shifted map. A 1x1 convolution
commutes with interpolation. So each tap is applied to the coarse map, which has fewer pixels, and its output is
interpolated, shifted and added. For a map that is s times smaller this takes 1 / s^2 of the arithmetic. Neither the
interpolated maps nor their concatenation are ever computed.

Interpolation and shift along an axis are one product with a matrix that has few nonzero entries per row. Entries beyond
the edges are 0, like the padding.

Shapes: `C` channels of a coarse map, `E` channels of the output, `W` width of the output, `w` width of the coarse map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.models.map_rows import (
    Activation,
    ComputedRows,
    MapRows,
    as_image,
    from_image,
    interpolation,
    pointwise,
    with_zero_rows,
)

_COLUMNS_AT_ONCE = 64
"""Of the output that one matrix product makes: the matrices hold mostly zeros if there are more."""


class ConvOfResizedRows(ComputedRows):
    """The convolution of the concatenation of `finest` and of each map of `coarse`, interpolated to `size`.

    Args:
        finest: a map of this size, the first in the concatenation, if there is one.
        coarse: maps of any sizes, in the order of the concatenation.
        size: (height, width) of the output.
        conv: a 3x3 convolution that keeps the size.
        activation: the activation after it, if any.
    """

    def __init__(
        self,
        finest: MapRows | None,
        coarse: Sequence[MapRows],
        size: tuple[int, int],
        conv: nn.Conv2d,
        activation: Activation | None = None,
    ) -> None:
        first = 0 if finest is None else finest.channels
        self._finest, self._weight = finest, conv.weight[:, :first]
        taps = []
        for one in coarse:
            taps.append(_TapRows(one, conv.weight[:, first : first + one.channels], size))
            first += one.channels
        super().__init__(*size, conv.out_channels, [*taps] if finest is None else [finest, *taps])
        self._taps, self._bias, self._activation = taps, conv.bias, activation

    def workspace(self, rows: int) -> int:
        """Counts the padded rows of the finest map, a copy that torch may make of them, and the output."""
        return 2 * rows * self.width * (self.channels + (0 if self._finest is None else self._finest.channels))

    def _compute(self, start: int, end: int) -> Tensor:
        if self._finest is not None:
            rows = with_zero_rows(self._finest, start - 1, end + 1)
            found = from_image(F.conv2d(as_image(rows), self._weight, self._bias, padding=(0, 1)))
        else:
            bias = self._weight.new_zeros(self.channels) if self._bias is None else self._bias
            found = bias.expand(end - start, self.width, self.channels).contiguous()
        flat = found.flatten(1)
        for taps in self._taps:
            matrix, first = moved_interpolation(start, end, taps.height, self.height)
            matrix = matrix.to(found.device, found.dtype)
            flat.addmm_(matrix, taps.read(first, first + matrix.shape[1] // 3).reshape(-1, flat.shape[1]))
        return found if self._activation is None else self._activation(found)


class _TapRows(ComputedRows):
    """The nine taps applied to a coarse map; their outputs are interpolated, shifted and added along each row.

    A row contains the outputs of the three rows of taps, one after another: (k, 3 * W, E).
    """

    def __init__(self, source: MapRows, weight: Tensor, size: tuple[int, int]) -> None:
        width, outputs = size[1], weight.shape[0]
        super().__init__(source.height, 3 * width, outputs, [source])
        self._source = source
        # Each row of taps has its three taps one after another: (3, 3 * E, C).
        self._taps = weight.permute(2, 3, 0, 1).reshape(3, 3 * outputs, source.channels)
        self._blocks = []
        for first in range(0, width, _COLUMNS_AT_ONCE):
            last = min(first + _COLUMNS_AT_ONCE, width)
            matrix, left = moved_interpolation(first, last, source.width, width)
            self._blocks.append((first, last, left, matrix.to(weight.device, weight.dtype)))

    def workspace(self, rows: int) -> int:
        """Counts the output of one row of taps, and a block of it after the interpolation."""
        return rows * (3 * self._source.width + _COLUMNS_AT_ONCE) * self.channels

    def _compute(self, start: int, end: int) -> Tensor:
        rows = self._source.read(start, end)
        count, width = len(rows), self.width // 3
        found = rows.new_empty(count, 3, width, self.channels)
        for index, taps in enumerate(self._taps):
            tapped = pointwise(rows, taps).view(count, 3 * self._source.width, self.channels)
            for first, last, left, matrix in self._blocks:
                some = tapped[:, 3 * left : 3 * left + matrix.shape[1]]
                found[:, index, first:last] = torch.bmm(matrix.expand(count, -1, -1), some)
        return found.flatten(1, 2)


def moved_interpolation(start: int, end: int, source_length: int, length: int) -> tuple[Tensor, int]:
    """Returns the matrix that computes samples start..end of `length` from three taps of source samples.

    The row for sample r has three weights per source sample, one for each of the taps 0, 1 and 2. They are the weights
    of that source sample in the interpolated samples r - 1, r and r + 1. For samples beyond the edges they are 0.

    Returns:
        float32 (end - start, 3 * n), and the number of the first of the n source samples.
    """
    first, last = max(0, start - 1), min(end + 1, length)
    before, after, weight = interpolation(first, last, source_length, length)
    left, right = int(before[0]), int(after[-1]) + 1
    plain = torch.zeros(last - first + 2, right - left)
    rows = torch.arange(last - first) + 1  # a row of zeros above and below
    plain.index_put_((rows, before - left), 1 - weight, accumulate=True)
    plain.index_put_((rows, after - left), weight, accumulate=True)
    top = start - first  # index of the sample before `start` in the padded rows
    matrix = torch.stack([plain[top + tap : top + tap + end - start] for tap in range(3)], dim=2)
    return matrix.flatten(1), left
