"""Adds a margin to an image on the right and at the bottom, so that its sides are multiples of a number.

Detectors need it.
"""

import numpy as np

from xcit.images.row_views import with_identity
from xcit.images.rows import ImageRows, Mask, Pixels, mask_reader, rows_info


class PaddedRows:
    """A source with a margin on the right and at the bottom that makes its sides multiples of a number.

    The mask leaves the margin out, so that its pixels are 0 after the normalisation, like zero padding. The tokens of
    the margin still count, like those of a padded batch (see `streaming.masks`).

    Attributes:
        source: the image without padding.
    """

    def __init__(self, source: ImageRows, multiple: int) -> None:
        self.source = source
        self.height, self.width = (-(-side // multiple) * multiple for side in (source.height, source.width))
        self.channels = source.channels
        self.info = with_identity(rows_info(source), f"padded to {multiple}")
        self._dtype = source.read(0, 1).dtype
        self._mask = mask_reader(source)

    def read(self, start: int, end: int) -> Pixels:
        """Returns a new array, which is 0 in the margin."""
        pixels = np.zeros((end - start, self.width, self.channels), self._dtype)
        last = min(end, self.source.height)
        if start < last:
            pixels[: last - start, : self.source.width] = self.source.read(start, last)
        return pixels

    def read_mask(self, start: int, end: int) -> Mask:
        """Returns the image's mask, which is false in the margin."""
        mask = np.zeros((end - start, self.width), np.bool_)
        last = min(end, self.source.height)
        if start < last:
            mask[: last - start, : self.source.width] = True if self._mask is None else self._mask(start, last)
        return mask
