"""Pads an image on the right and below to sides that are multiples of a number, as detectors need it."""

import numpy as np

from xcit.images.row_views import with_identity
from xcit.images.rows import ImageRows, Mask, Pixels, mask_reader, rows_info


class PaddedRows:
    """A source that is padded on the right and below, so that its sides are multiples of a number.

    The mask leaves the padding out, so the model sees zeros there after the normalisation, as beyond the edge of an
    image. The tokens of the padding count nevertheless, as in a padded batch (see `streaming.masks`).

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
        """Returns a new array with zeros in the padding."""
        pixels = np.zeros((end - start, self.width, self.channels), self._dtype)
        last = min(end, self.source.height)
        if start < last:
            pixels[: last - start, : self.source.width] = self.source.read(start, last)
        return pixels

    def read_mask(self, start: int, end: int) -> Mask:
        """Returns the mask of the source, false in the padding."""
        mask = np.zeros((end - start, self.width), np.bool_)
        last = min(end, self.source.height)
        if start < last:
            mask[: last - start, : self.source.width] = True if self._mask is None else self._mask(start, last)
        return mask
