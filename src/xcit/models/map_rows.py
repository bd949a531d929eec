"""Maps that are read by rows, and layers of a dense head over them, with the numbers of the whole map.

A layer of a head needs only a few neighbouring rows of its input. So a map that is too large for memory is never made:
whoever wants rows of the last layer's map asks for them, and each layer asks the one before it for those rows and the
halo that it needs. A layer keeps the rows of its last read, so that one whose rows are asked for from the top to the
bottom computes nothing twice; reads in another order give the same numbers, and cost more.

Shapes: `C` channels, `W` width, `k` rows of a read. Rows are (k, W, C), in the order in which a convolution with
channels last takes them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BEHIND = 4
"""Rows above those of a read that are kept as well: of two layers that read one map, one may be a little behind."""

NUMBERS_AT_ONCE = 2**21
"""Of the largest map, in a stripe of a map that is in memory: enough for full speed."""

_IMAGES = 16
"""Of which a convolution of 1 x 1 is fast on a CPU: see `pointwise`."""

Activation = Callable[[Tensor], Tensor]
"""Changes numbers where they lie, and gives them back."""


class MapRows(Protocol):
    """A map (height, width, channels) that is read by rows."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Number of pixels per row."""

    @property
    def channels(self) -> int:
        """Number of values per pixel."""

    def read(self, start: int, end: int) -> Tensor:
        """Rows start..end, (end - start, width, channels), contiguous; they must not be changed."""


class TensorRows:
    """A map that is a tensor (height, width, channels)."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.height, self.width, self.channels = tensor.shape

    def read(self, start: int, end: int) -> Tensor:
        """Returns a view of rows start..end."""
        return self.tensor[start:end]


class ComputedRows:
    """A map whose rows are computed from those of others: what all layers below share.

    Attributes:
        height: rows.
        width: pixels a row.
        channels: numbers a pixel.
        sources: the maps that it is computed from.
    """

    def __init__(self, height: int, width: int, channels: int, sources: Sequence[MapRows]) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.sources = tuple(sources)
        self._kept: Tensor | None = None
        self._start = 0  # number of the first row that is kept

    def read(self, start: int, end: int) -> Tensor:
        """Rows that are kept from the last read, and those after them, which are computed."""
        kept = self._kept
        if kept is None or not self._start <= start <= self._start + len(kept):
            kept, self._start = self._compute(start, end), start
        elif end > self._start + len(kept):
            known = self._start + len(kept)
            dropped = max(0, start - BEHIND - self._start)
            # Only these few rows are copied; the rest of the last read is let go of before the new rows are computed.
            kept = kept[dropped:].clone() if dropped else kept
            self._kept, self._start = kept, self._start + dropped
            kept = torch.cat([kept, self._compute(known, end)])
        self._kept = kept
        return kept[start - self._start : end - self._start]

    def workspace(self, rows: int) -> int:
        """Numbers that exist for a moment while so many rows are computed, beside those rows and the sources'."""
        return 2 * rows * self.width * self.channels

    def _compute(self, start: int, end: int) -> Tensor:
        raise NotImplementedError


class ConvRows(ComputedRows):
    """A convolution of an odd size that keeps the map's size, with zeros beyond its edges, and what follows it."""

    def __init__(self, source: MapRows, conv: nn.Conv2d, activation: Activation | None = None) -> None:
        super().__init__(source.height, source.width, conv.out_channels, [source])
        self._source, self._conv, self._activation = source, conv, activation
        self._halo = conv.kernel_size[0] // 2

    def _compute(self, start: int, end: int) -> Tensor:
        conv, halo = self._conv, self._halo
        if halo == 0:
            found = pointwise(self._source.read(start, end), conv.weight.flatten(1), conv.bias)
        else:
            rows = with_zero_rows(self._source, start - halo, end + halo)
            found = from_image(F.conv2d(as_image(rows), conv.weight, conv.bias, padding=(0, halo)))
        return found if self._activation is None else self._activation(found)

    def workspace(self, rows: int) -> int:
        """The rows that it reads, with zeros and as torch may copy them, and its output."""
        return 2 * rows * self.width * (self.channels + self._source.channels)


class DoubledRows(ComputedRows):
    """A transposed convolution of 2 x 2 with a stride of 2: each pixel becomes four; and what follows it.

    Args:
        source: what is doubled.
        weight: (C, outputs, 2, 2).
        bias: (outputs,) or none.
        activation: what follows.
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
        """This and a 1x1 convolution after it as one transposed convolution; nothing may come between them."""
        assert self._activation is None
        matrix = conv.weight.flatten(1)
        weight = torch.einsum("ioyx,po->ipyx", self._weight, matrix)
        bias = conv.bias if self._bias is None else F.linear(self._bias, matrix, conv.bias)
        return DoubledRows(self._source, weight, bias, activation)


def lateral_rows(source: MapRows, conv: nn.Conv2d, activation: Activation | None = None) -> ComputedRows:
    """A 1x1 convolution of a level of a pyramid, and what follows it."""
    if isinstance(source, DoubledRows):
        return source.followed_by(conv, activation)
    return ConvRows(source, conv, activation)


class ShrunkMapRows(ComputedRows):
    """The largest of each square of pixels, of full squares alone; of what there is where a side is less."""

    def __init__(self, source: MapRows, factor: int) -> None:
        self._down, self._across = min(factor, source.height), min(factor, source.width)
        super().__init__(source.height // self._down, source.width // self._across, source.channels, [source])
        self._source = source

    def _compute(self, start: int, end: int) -> Tensor:
        rows = self._source.read(start * self._down, end * self._down)
        return from_image(F.max_pool2d(as_image(rows), (self._down, self._across)))

    def workspace(self, rows: int) -> int:
        """The rows that it reads."""
        return 2 * rows * self._down * self._source.width * self.channels


class ResizedRows(ComputedRows):
    """Bilinear interpolation to another size, with the numbers of `F.interpolate` of a contiguous image.

    Torch's form for channels last rounds the positions in another way, which shows in large maps: it is not used.
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
        """The neighbours of each row, and then of each pixel of a row."""
        return rows * (2 * self._source.width + 2 * self.width) * self.channels


class NearestRows(ComputedRows):
    """The nearest pixel's numbers, to another size, as `F.interpolate` has them."""

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
    """The sum of two maps of one size."""

    def __init__(self, first: MapRows, second: MapRows) -> None:
        super().__init__(first.height, first.width, first.channels, [first, second])
        self._first, self._second = first, second

    def _compute(self, start: int, end: int) -> Tensor:
        return self._first.read(start, end) + self._second.read(start, end)


def interpolation(
    start: int, end: int, source_length: int, length: int, *, align_corners: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Where bilinear interpolation takes the samples start..end of `length` from, of `source_length` samples.

    The positions are computed in float32, as torch does: in large maps their rounding shows in the results.

    Returns:
        The sample before each and the one after it, int64 (n,), and the weight of the one after it, float32 (n,).
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
    """Rows start..end of a map, with zeros for those beyond its edges."""
    first, last = max(0, start), min(end, source.height)
    rows = source.read(first, last)
    if first == start and last == end:
        return rows
    above, below = rows.new_zeros(first - start, *rows.shape[1:]), rows.new_zeros(end - last, *rows.shape[1:])
    return torch.cat([above, rows, below])


def pointwise(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows (k, W, C) times the matrix `weight` (outputs, C), plus `bias`: (k, W, outputs).

    On a CPU it is a convolution of 16 images of one row each, which torch gives to oneDNN. A linear layer, or a
    convolution of fewer images, is MKL's, which takes twice the time on processors that are not Intel's.
    """
    pixels = rows.reshape(-1, rows.shape[2])
    num = len(pixels) // _IMAGES * _IMAGES if pixels.device.type == "cpu" else 0
    parts = []
    if num:
        images = pixels[:num].view(_IMAGES, num // _IMAGES, -1).permute(0, 2, 1).unsqueeze(2)
        found = F.conv2d(images, weight[:, :, None, None], bias)
        parts.append(found.squeeze(2).permute(0, 2, 1).reshape(num, -1))
    if num < len(pixels):
        parts.append(F.linear(pixels[num:], weight, bias))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.view(*rows.shape[:2], -1)


def as_image(rows: Tensor) -> Tensor:
    """Rows (k, W, C) as an image (1, C, k, W) with channels last; no copy."""
    return rows.permute(2, 0, 1)[None]


def from_image(image: Tensor) -> Tensor:
    """An image (1, C, k, W) as contiguous rows (k, W, C)."""
    return image[0].permute(1, 2, 0).contiguous()


def all_maps(*maps: MapRows) -> list[MapRows]:
    """These maps and all that they are computed from, each once."""
    found: dict[int, MapRows] = {}
    waiting = list(maps)
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += one.sources if isinstance(one, ComputedRows) else []
    return list(found.values())


def rows_of_a_stripe(last: MapRows, at_once: int = NUMBERS_AT_ONCE) -> int:
    """How many rows of `last` to read at once: the largest map that they are made of takes about so many numbers."""
    row = max(one.width * one.channels * one.height / last.height for one in all_maps(last))
    return max(1, min(last.height, int(at_once / row)))


def numbers_held(last: MapRows, rows: int) -> int:
    """The most numbers that exist at once while `last` is read `rows` at a time: the model of memory of a head."""
    kept = passing = 0
    for one in all_maps(last):
        num_rows = min(one.height, -(-rows * one.height // last.height) + 2 * BEHIND)
        kept += num_rows * one.width * one.channels
        passing = max(passing, one.workspace(num_rows) if isinstance(one, ComputedRows) else 0)
    return kept + passing


def _rows_of(rows: Tensor, numbers: Tensor) -> Tensor:
    return rows.index_select(0, numbers.to(rows.device))


def _between(rows: Tensor, dim: int, before: Tensor, after: Tensor, weight: Tensor) -> Tensor:
    """Between samples of rows (k, W, C), in float32 at least: in bfloat16 a weight would have two digits."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    shape = [1, 1, 1]
    shape[dim] = -1
    first, second = (rows.index_select(dim, one.to(rows.device)).to(wide) for one in (before, after))
    return first.lerp_(second, weight.to(rows.device, wide).view(shape)).to(rows.dtype)


def _nearest(source_length: int, length: int) -> Tensor:
    """The pixel of the source that each of `length` takes, int64."""
    scale = torch.tensor(source_length, dtype=torch.float32) / length
    return (torch.arange(length, dtype=torch.float32) * scale).long().clamp_(max=source_length - 1)
