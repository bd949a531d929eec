"""Sources of rows that modify another source: they select bands, a range of values or a region, or reduce the size.

Each of these sources adapts the `info` and the `read_mask` of the other source (see `rows.py`). `MaskedRows` adds a
mask.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xcit.errors import XCiTError
from xcit.images.overview import box_means
from xcit.images.rows import ImageRows, Mask, Pixels, ReadMask, RowsInfo, mask_reader, rows_info
from xcit.images.transforms import IDENTITY, Transform, enlarged, moved


class BandRows:
    """A source with selected channels of another source.

    `bands` contains the numbers of the selected channels, counted from 1, in the order of the result.

    Raises:
        XCiTError: if the other source does not have one of these channels.
    """

    def __init__(self, source: ImageRows, bands: tuple[int, ...]) -> None:
        for band in bands:
            if band > source.channels:
                name = rows_info(source).name
                raise XCiTError(f"{name}: no band {band}: the image has {source.channels} bands, counted from 1")
        self._source, self._indices = source, [band - 1 for band in bands]
        self.height, self.width, self.channels = source.height, source.width, len(bands)
        self.info = with_identity(rows_info(source), f"bands {bands}")
        self.read_mask = mask_reader(source)

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array."""
        return self._source.read(start, end)[:, :, self._indices]


class RangedRows:
    """A source that scales the values low..high of another source to 0..1, as float32, and clips all other values."""

    def __init__(self, source: ImageRows, value_range: tuple[float, float]) -> None:
        self._source, (self._low, self._high) = source, value_range
        self.height, self.width, self.channels = source.height, source.width, source.channels
        self.info = with_identity(rows_info(source), f"range {value_range}")
        self.read_mask = mask_reader(source)

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array."""
        pixels = self._source.read(start, end)
        # float32 can't represent all 32-bit integers.
        is_narrow = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
        numbers: Pixels = pixels.astype(np.float32 if is_narrow else np.float64)
        np.subtract(numbers, self._low, out=numbers)
        np.divide(numbers, self._high - self._low, out=numbers)
        return np.clip(numbers, 0, 1, out=numbers).astype(np.float32, copy=False)


class RegionRows:
    """A source that is a rectangle of another source. `region` is x, y, width and height in pixels.

    Raises:
        XCiTError: if the region extends beyond the edge of the other source.
    """

    read_mask: ReadMask | None

    def __init__(self, source: ImageRows, region: tuple[int, int, int, int]) -> None:
        self._source, self._left, self._top = source, region[0], region[1]
        self.width, self.height, self.channels = region[2], region[3], source.channels
        info = rows_info(source)
        if self._left + self.width > source.width or self._top + self.height > source.height:
            raise XCiTError(
                f"{info.name}: the region {','.join(map(str, region))} extends beyond the image of "
                f"{source.width} x {source.height} pixels"
            )
        self._rows_at_once = max(info.rows_at_once, 16)
        info = with_place(info, lambda transform: moved(transform, self._left, self._top))
        self.info = with_identity(info, f"region {region}")
        self._mask = mask_reader(source)
        self.read_mask = None if self._mask is None else self._read_mask

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array. A view would keep the full rows of the other source in memory."""
        columns, pieces = slice(self._left, self._left + self.width), []
        for first in range(self._top + start, self._top + end, self._rows_at_once):
            last = min(first + self._rows_at_once, self._top + end)
            pieces.append(self._source.read(first, last)[:, columns].copy())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read_mask(self, start: int, end: int) -> Mask:
        assert self._mask is not None
        return self._mask(self._top + start, self._top + end)[:, self._left : self._left + self.width]


class ShrunkRows:
    """A source in which each pixel is the mean of a square of `factor` x `factor` pixels of another source.

    Incomplete squares at the right and lower edges are cut off. A pixel is valid (true in the mask) if at least half of
    the pixels in its square are valid. The mean is over all pixels of the square, including invalid pixels.

    Raises:
        XCiTError: if the other source has less than one complete square.
    """

    read_mask: ReadMask | None

    def __init__(self, source: ImageRows, factor: int) -> None:
        self._source, self._factor = source, factor
        self.height, self.width, self.channels = source.height // factor, source.width // factor, source.channels
        info = rows_info(source)
        if not self.height or not self.width:
            raise XCiTError(
                f"{info.name}: an image of {source.width} x {source.height} pixels can't be reduced by the factor "
                f"{factor}"
            )
        info = with_place(info, lambda transform: enlarged(transform, factor, factor))
        info = replace(info, rows_at_once=max(1, info.rows_at_once // factor))
        self.info = with_identity(info, f"factor {factor}")
        self._mask = mask_reader(source)
        self.read_mask = None if self._mask is None else self._read_mask

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array."""
        pieces = []
        for row in range(start, end):  # one row at a time, to save memory: a pixel needs factor**2 source pixels
            rows = self._source.read(row * self._factor, (row + 1) * self._factor)[:, : self.width * self._factor]
            means = box_means(rows, self._factor)
            pieces.append(np.rint(means).astype(rows.dtype) if rows.dtype.kind in "ui" else means)
        return np.concatenate(pieces)

    def _read_mask(self, start: int, end: int) -> Mask:
        assert self._mask is not None
        mask = self._mask(start * self._factor, end * self._factor)[:, : self.width * self._factor]
        return box_means(mask[:, :, None], self._factor)[:, :, 0] >= 0.5


class MaskedRows:
    """A source that adds a mask to another source.

    A pixel is valid (true in the mask) if any channel of the mask image is above 0 at this pixel, and if the other
    source does not mask it out. If the mask image has another size, it is scaled with nearest-neighbour interpolation.
    """

    def __init__(self, source: ImageRows, mask: ImageRows) -> None:
        self._source, self._mask, self._own = source, mask, mask_reader(source)
        self.height, self.width, self.channels = source.height, source.width, source.channels
        info, other = rows_info(source), rows_info(mask)
        columns = (np.arange(self.width) * 2 + 1) * mask.width // (2 * self.width)
        self._columns = None if mask.width == self.width else columns
        whole = with_identity(info, f"mask {other.identity}") if other.identity else replace(info, identity=None)
        self.info = replace(whole, buffer_bytes=info.buffer_bytes + other.buffer_bytes)

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end of the other source, unchanged."""
        return self._source.read(start, end)

    def read_mask(self, start: int, end: int) -> Mask:
        """Returns the mask of rows start:end, bool (end - start, width). Valid pixels are true."""
        rows = (np.arange(start, end) * 2 + 1) * self._mask.height // (2 * self.height)
        first, last = int(rows[0]), int(rows[-1])
        found: Mask = np.any(self._mask.read(first, last + 1) > 0, axis=2)
        if self._columns is not None:
            found = found[:, self._columns]
        if self._mask.height != self.height:
            found = found[rows - first]
        return found if self._own is None else found & self._own(start, end)


def with_place(info: RowsInfo, change: Callable[[Transform], Transform]) -> RowsInfo:
    """Returns a copy of `info`. `change` is applied to the transforms `place` and `transform` in `info.metadata`."""
    metadata = {"place": IDENTITY, **info.metadata}
    changed = {key: change(metadata[key]) for key in ("place", "transform") if key in metadata}
    return replace(info, metadata=metadata | changed)


def with_identity(info: RowsInfo, words: str) -> RowsInfo:
    """Returns a copy of `info` with `words` appended to the identity. An identity of None stays None."""
    return replace(info, identity=None if info.identity is None else f"{info.identity} {words}")
