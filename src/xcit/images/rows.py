"""An image of any size as a thing that gives its rows: what every reader of large files is, and what streaming takes.

A source of your own needs the four members of `ImageRows` alone. `info` is for what else is known: the readers in this
package have it, and `rows_info` fills it in for those that have none. `open_rows.py` chooses the reader of a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]
"""Rows of an image, (rows, width, channels)."""


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
        metadata: whatever else the file says, by the reader's own names: `transform` and `crs` of a map, `nodata`,
            `mpp` (micrometres a pixel) of a slide.
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
