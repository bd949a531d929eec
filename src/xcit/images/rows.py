"""Defines the interface of an image that is read a few rows at a time.

The row readers of this package implement the interface, and `xcit.streaming` reads images through it. `open_rows.py`
chooses the reader for a file. A custom source needs only the four members of `ImageRows`. It may also have an attribute
`info` (a `RowsInfo`) and a method `read_mask` (see `mask_reader`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
"""Rows of an image, (rows, width, channels)."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""The mask of some rows, (rows, width). Valid pixels are true; false pixels are masked out, which means ignored."""

ReadMask = Callable[[int, int], Mask]
"""A function (start, end) that returns the mask of rows start:end."""


class ImageRows(Protocol):
    """An image that is read a few rows at a time.

    The caller may read the first row to learn the type of the pixels. Then the caller reads each row once, from top to
    bottom, in a separate thread.
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
        """Returns rows start:end as an array (end - start, width, channels). The type is the same for all rows.

        The caller divides unsigned integers by the largest value of their type (255 for uint8). It does not scale other
        types.

        Raises:
            XCiTError: "<name>: <reason>" if the rows can't be read. If the file is truncated, the reason contains the
                number of the row in which it ends.
        """


@dataclass(frozen=True, kw_only=True)
class RowsInfo:
    """Information about a source, in addition to its size.

    Attributes:
        name: name of the source in error messages and results, such as the path of a file.
        identity: a text that changes when the pixels change. If it is None, a run on this source can't be resumed.
        levels: (height, width) of each level of a pyramid, the largest first; may be empty if there is only one level.
        level: index of the level that this source reads; 0 is the largest.
        rows_at_once: number of rows that are decoded together, such as the height of a row of tiles. Reading all of
            them costs as much as reading one of them.
        buffer_bytes: number of bytes that the source keeps in memory between two reads, such as a row of decoded tiles.
        metadata: other information, by key:

            - `place`: transform from pixels of this source to pixels of the file's largest level,
            - `transform`: transform from pixels of this source to coordinates on the ground,
            - `crs`: coordinate system on the ground, as WKT,
            - `mpp`: micrometres per pixel of the file's largest level,
            - `nodata`: value of missing pixels.

            `transforms.py` defines transforms.
    """

    name: str = "the image"
    identity: str | None = None
    levels: tuple[tuple[int, int], ...] = ()
    level: int = 0
    rows_at_once: int = 1
    buffer_bytes: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def rows_info(source: ImageRows) -> RowsInfo:
    """Returns the `info` of a source, or a default `RowsInfo` if the source has none."""
    info = getattr(source, "info", None)
    return info if isinstance(info, RowsInfo) else RowsInfo()


def mask_reader(source: ImageRows) -> ReadMask | None:
    """Returns the method `read_mask` of a source, or None if the source has no mask and all its pixels are valid.

    `read_mask(start, end)` returns the mask of rows start:end, bool (end - start, width). It is called for all rows
    before the first pass over the image. During the first pass, it is called after each `read` for the same rows. It
    may be called again later.
    """
    return getattr(source, "read_mask", None)
