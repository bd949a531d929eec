"""Pads an image on the right and at the bottom, so that its height and width are multiples of a number.

Detectors need this padding.
"""

import numpy as np

from xcit.images.row_views import with_identity
from xcit.images.rows import ImageRows, Mask, Pixels, mask_reader, rows_info


class PaddedRows:
    """A source of rows that adds padding to another source. The padded height and width are multiples of `multiple`.

    The mask is false in the padding, so that the pixels of the padding are 0 after the normalisation. But the model
    uses the tokens of the padding like all other tokens, as in a padded batch (see `streaming.masks`).

    Attributes:
        source: the source without padding.
    """

    def __init__(self, source: ImageRows, multiple: int) -> None:
        self.source = source
        self.height, self.width = (-(-side // multiple) * multiple for side in (source.height, source.width))
        self.channels = source.channels
        self.info = with_identity(rows_info(source), f"padded to {multiple}")
        self._dtype = source.read(0, 1).dtype
        self._mask = mask_reader(source)

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array. The padding is 0."""
        pixels = np.zeros((end - start, self.width, self.channels), self._dtype)
        last = min(end, self.source.height)
        if start < last:
            pixels[: last - start, : self.source.width] = self.source.read(start, last)
        return pixels

    def read_mask(self, start: int, end: int) -> Mask:
        """Returns the mask of rows start:end, bool (end - start, width). The padding is false."""
        mask = np.zeros((end - start, self.width), np.bool_)
        last = min(end, self.source.height)
        if start < last:
            mask[: last - start, : self.source.width] = True if self._mask is None else self._mask(start, last)
        return mask
