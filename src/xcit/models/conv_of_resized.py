"""A 3x3 convolution of several feature maps that are interpolated to one size and concatenated.

A 3x3 convolution is the sum of nine taps. Each tap is a 1x1 convolution of the map, shifted by at most one pixel. A 1x1
convolution can be computed before the interpolation instead of after it. So each tap is applied to the coarse map,
which has fewer pixels. Then the result is interpolated, shifted and added. If the sides of a coarse map are s times
shorter than the sides of the output, a tap takes 1 / s^2 of the operations that it would take on the interpolated map.
The interpolated maps and their concatenation are never stored.

Along one side of the map, the interpolation and the shift together are a product with one matrix, which has few nonzero
values per row. The matrix is 0 for samples outside the map, which has the same effect as zero padding.

Shapes: `C` channels of a coarse map, `E` channels of the output, `W` width of the output, `w` width of a coarse map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops
from xcit.models.map_rows import (
    Activation,
    ComputedRows,
    MapRows,
    as_image,
    from_image,
    interpolation,
    with_zero_rows,
)

_COLUMNS_AT_ONCE = 64
"""Number of output columns per matrix product. With more columns, the matrices would consist mostly of zeros."""


class ConvOfResizedRows(ComputedRows):
    """The output of a 3x3 convolution, computed a few rows at a time.

    The input of the convolution is the concatenation of `finest` and the maps of `coarse`, interpolated to `size`.

    Args:
        finest: a map with the size of the output. Its channels are the first in the concatenation. None means that
            there is no such map.
        coarse: maps of any sizes, in the order of the concatenation.
        size: (height, width) of the output.
        conv: a 3x3 convolution with stride 1 and zero padding of 1 pixel.
        activation: applied to the output; None means no activation.
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
        """Returns the number of temporary values: the padded rows of the finest map and the output rows.

        Both are counted twice, because torch may copy them.
        """
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
    """The nine taps of the convolution, applied to a coarse map.

    For each of the three rows of the kernel, the results of the three taps in this row are interpolated along the
    width, shifted and added. For k rows of the coarse map, the output has the shape (k, 3 * W, E). The second dimension
    contains the results for the first kernel row, then for the second, then for the third.
    """

    def __init__(self, source: MapRows, weight: Tensor, size: tuple[int, int]) -> None:
        width, outputs = size[1], weight.shape[0]
        super().__init__(source.height, 3 * width, outputs, [source])
        self._source = source
        # The weights of the taps, (3, 3 * E, C). For each kernel row, the weights of the row's taps are concatenated.
        self._taps = weight.permute(2, 3, 0, 1).reshape(3, 3 * outputs, source.channels)
        self._blocks = []
        for first in range(0, width, _COLUMNS_AT_ONCE):
            last = min(first + _COLUMNS_AT_ONCE, width)
            matrix, left = moved_interpolation(first, last, source.width, width)
            self._blocks.append((first, last, left, matrix.to(weight.device, weight.dtype)))

    def workspace(self, rows: int) -> int:
        """Returns the number of temporary values.

        They are the results of the taps for one kernel row, and one block of the output's columns.
        """
        return rows * (3 * self._source.width + _COLUMNS_AT_ONCE) * self.channels

    def _compute(self, start: int, end: int) -> Tensor:
        rows = self._source.read(start, end)
        count, width = len(rows), self.width // 3
        found = rows.new_empty(count, 3, width, self.channels)
        for index, taps in enumerate(self._taps):
            tapped = ops.linear(rows, taps).view(count, 3 * self._source.width, self.channels)
            for first, last, left, matrix in self._blocks:
                some = tapped[:, 3 * left : 3 * left + matrix.shape[1]]
                found[:, index, first:last] = torch.bmm(matrix.expand(count, -1, -1), some)
        return found.flatten(1, 2)


def moved_interpolation(start: int, end: int, source_length: int, length: int) -> tuple[Tensor, int]:
    """Computes the matrix that interpolates the results of three taps and adds them.

    The matrix has a row for each output sample r from `start` to `end` (exclusive), and three columns for each source
    sample. These columns contain the weights of the source sample in the interpolated samples r - 1, r and r + 1, for
    the taps 0, 1 and 2. The weights for interpolated samples outside the map are 0.

    Returns:
        The matrix, float32 (end - start, 3 * n), for the n source samples that the output samples need; and the index
        of the first of these source samples.
    """
    first, last = max(0, start - 1), min(end + 1, length)
    before, after, weight = interpolation(first, last, source_length, length)
    left, right = int(before[0]), int(after[-1]) + 1
    plain = torch.zeros(last - first + 2, right - left)
    rows = torch.arange(last - first) + 1  # the first and the last row of `plain` stay zero
    plain.index_put_((rows, before - left), 1 - weight, accumulate=True)
    plain.index_put_((rows, after - left), weight, accumulate=True)
    top = start - first  # the row of `plain` for the sample before `start`
    matrix = torch.stack([plain[top + tap : top + tap + end - start] for tap in range(3)], dim=2)
    return matrix.flatten(1), left
