"""Rows of tiles that are decoded once, and kept until rows below them are asked for."""

from collections.abc import Callable

import numpy as np

from xcit.images.rows import Mask, Pixels

Decode = Callable[[int, int], tuple[Pixels, Mask | None]]
"""Takes the first row and the one after the last of a row of tiles; gives its pixels and which of them count."""


class KeptRows:
    """Gives any rows of an image that is decoded by `tile_rows` rows at a time."""

    def __init__(self, height: int, tile_rows: int, decode: Decode) -> None:
        self._height, self._tile_rows, self._decode = height, tile_rows, decode
        self._start, self._end = 0, 0
        self._kept: tuple[Pixels, Mask | None] | None = None

    def read(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        """Rows start..end; views, if one row of tiles has them all."""
        pieces: list[tuple[Pixels, Mask | None]] = []
        while start < end:
            if not self._start <= start < self._end:
                self._kept = None  # first, so that there is only ever one
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
