"""An image of any size as a thing that gives its rows: what every reader of large files is, and what streaming takes.

A source of your own needs the four members of `ImageRows` alone. `info` is for what else is known: the readers in this
package have it, and `rows_info` fills it in for those that have none. `open_rows.py` chooses the reader of a file.
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
"""Takes the first row and the one after the last."""


class ImageRows(Protocol):
    """An image that is read by rows.

    A pass reads each row once, from the top to the bottom, a few at a time, and from a thread of its own.
    """

    @property
    def height(self) -> int:
        """Rows of pixels."""

    @property
    def width(self) -> int:
        """Pixels a row."""

    @property
    def channels(self) -> int:
        """Numbers a pixel."""

    def read(self, start: int, end: int) -> Pixels:
        """Rows start..end, (end - start, width, channels), of one type throughout the image.

        Integers stand for shares of the largest that their type holds (of uint8: 255); floats stand for themselves.

        Raises:
            XCiTError: "<name>: <reason>", if they can't be read; it names the row where a file ends too soon.
        """


@dataclass(frozen=True, kw_only=True)
class RowsInfo:
    """What is known of a source beside its size.

    Attributes:
        name: what errors and results call it: a file's path.
        identity: changes when the pixels do; none where that can't be told, and then no run is resumed.
        levels: (height, width) of each level of a pyramid, the largest first; empty where there is one size alone.
        level: which of them this is.
        rows_at_once: rows that cost as much to read as one of them: the height of tiles that have to be decoded whole.
        buffer_bytes: memory that it holds from one read to the next, such as a row of decoded tiles.
        metadata: whatever else the file says. `place` leads from pixels of this source to those of the file's largest
            level, `transform` to the coordinates of a map, whose system is `crs` (WKT): both as in `transforms.py`.
            `mpp` is micrometres a pixel of the largest level of a slide, `nodata` the value of what is not there.
    """

    name: str = "the image"
    identity: str | None = None
    levels: tuple[tuple[int, int], ...] = ()
    level: int = 0
    rows_at_once: int = 1
    buffer_bytes: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def rows_info(source: ImageRows) -> RowsInfo:
    """What a source says of itself in `info`, or nothing but a name."""
    info = getattr(source, "info", None)
    return info if isinstance(info, RowsInfo) else RowsInfo()


def mask_reader(source: ImageRows) -> ReadMask | None:
    """What tells which pixels count: a source's `read_mask`, none if it has none and all do.

    A source may have `read_mask(start, end)`, bool (end - start, width). It is called for all rows before the first
    pass, and again for the rows that `read` was called for last.
    """
    return getattr(source, "read_mask", None)
