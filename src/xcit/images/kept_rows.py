"""Keeps a row of tiles that was decoded, until rows below it are requested."""

from collections.abc import Callable

import numpy as np

from xcit.images.rows import Mask, Pixels

Decode = Callable[[int, int], tuple[Pixels, Mask | None]]
"""Takes the first row and the end row of a row of tiles; returns its pixels and which of them count."""


class KeptRows:
    """Returns any rows of an image that is decoded in rows of tiles, each `tile_rows` high."""

    def __init__(self, height: int, tile_rows: int, decode: Decode) -> None:
        self._height, self._tile_rows, self._decode = height, tile_rows, decode
        self._start, self._end = 0, 0
        self._kept: tuple[Pixels, Mask | None] | None = None

    def read(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        """Returns rows start..end, as views if they are in one row of tiles."""
        pieces: list[tuple[Pixels, Mask | None]] = []
        while start < end:
            if not self._start <= start < self._end:
                self._kept = None  # released first, so that only one row of tiles is in memory
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
