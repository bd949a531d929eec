"""The interface of images that are read by rows; the readers of large files implement it, and streaming uses it.

A custom source needs only the four members of `ImageRows`. It may also have an `info` with further properties, as the
readers in this package do; `rows_info` creates one for other sources. `open_rows.py` chooses the reader of a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
"""Rows of an image, (rows, width, channels)."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""Which pixels of some rows count, (rows, width)."""

ReadMask = Callable[[int, int], Mask]
"""Takes the first row and the end row."""


class ImageRows(Protocol):
    """An image that is read by rows.

    A pass reads each row once, from top to bottom, a few at a time, in its own thread.
    """

    @property
    def height(self) -> int:
        """Number of rows of pixels."""

    @property
    def width(self) -> int:
        """Number of pixels per row."""

    @property
    def channels(self) -> int:
        """Number of values per pixel."""

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start..end, (end - start, width, channels), with the same type for the whole image.

        Integers are divided by the largest value of their type (255 for uint8); floats are used as they are.

        Raises:
            XCiTError: "<name>: <reason>" if the rows can't be read; if a file is truncated, the message names the row.
        """


@dataclass(frozen=True, kw_only=True)
class RowsInfo:
    """Information about a source, beside its size.

    Attributes:
        name: name in errors and results: a file's path.
        identity: a text that changes when the pixels change. If it is None, no run is resumed.
        levels: (height, width) of each level of a pyramid, the largest first; empty if there is only one size.
        level: the level of this source.
        rows_at_once: number of rows whose reading costs as much as that of one row: the height of a row of tiles.
        buffer_bytes: memory that it keeps from one read to the next, such as a row of decoded tiles.
        metadata: other information in the file. `place` is the transform from pixels of this source to pixels of
            the file's largest level. `transform` is the transform to map coordinates, whose coordinate system is `crs`
            (WKT). Both are as in `transforms.py`. `mpp` is the number of micrometres per pixel of a slide's largest
            level, and `nodata` is the value of missing pixels.
    """

    name: str = "the image"
    identity: str | None = None
    levels: tuple[tuple[int, int], ...] = ()
    level: int = 0
    rows_at_once: int = 1
    buffer_bytes: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def rows_info(source: ImageRows) -> RowsInfo:
    """Returns a source's `info`, or an info with just a name."""
    info = getattr(source, "info", None)
    return info if isinstance(info, RowsInfo) else RowsInfo()


def mask_reader(source: ImageRows) -> ReadMask | None:
    """Returns a source's `read_mask`, which says which pixels count; None means that all count.

    A source may have `read_mask(start, end)`, which returns bool (end - start, width). It is called for all rows before
    the first pass, and again for the rows of the last call of `read`.
    """
    return getattr(source, "read_mask", None)
