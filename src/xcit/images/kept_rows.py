"""Keeps one decoded row of tiles in memory, until pixel rows outside it are requested."""

from collections.abc import Callable

import numpy as np

from xcit.images.rows import Mask, Pixels

Decode = Callable[[int, int], tuple[Pixels, Mask | None]]
"""A function (start, end) that decodes one row of tiles: the pixel rows start:end.

It returns the pixels and a mask that is true for valid pixels. The mask is None if all pixels are valid.
"""


class KeptRows:
    """A reader of single pixel rows, for an image that can only be decoded in whole rows of tiles.

    A row of tiles is `tile_rows` pixel rows high.
    """

    def __init__(self, height: int, tile_rows: int, decode: Decode) -> None:
        self._height, self._tile_rows, self._decode = height, tile_rows, decode
        self._start, self._end = 0, 0
        self._kept: tuple[Pixels, Mask | None] | None = None

    def read(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        """Returns the pixels and the mask of rows start:end. They are views if all rows are in one row of tiles."""
        pieces: list[tuple[Pixels, Mask | None]] = []
        while start < end:
            if not self._start <= start < self._end:
                self._kept = None  # frees the previous row of tiles before the next row is decoded
                self._start = start - start % self._tile_rows
                self._end = min(self._start + self._tile_rows, self._height)
                try:
                    self._kept = self._decode(self._start, self._end)
                except BaseException:
                    self._end = self._start
                    raise
            assert self._kept is not None
            pixels, mask = self._kept
            part = slice(start - self._start, min(end, self._end) - self._start)
            pieces.append((pixels[part], None if mask is None else mask[part]))
            start = min(end, self._end)
        if len(pieces) == 1:
            return pieces[0]
        masks = [mask for _, mask in pieces if mask is not None]
        return np.concatenate([pixels for pixels, _ in pieces]), np.concatenate(masks) if masks else None
