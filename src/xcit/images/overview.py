"""Small copies of large images, for display."""

import numpy as np

from xcit.images.resize_8bit import Pixels as Picture
from xcit.images.rows import ImageRows, Pixels

_PIXELS_AT_ONCE = 2**22


def overview(source: ImageRows, factor: int) -> Picture:
    """Returns an image at 1 / `factor` of its size as 8-bit RGB; each pixel is the mean of a square.

    Integers are scaled to 8 bits, and floats are taken as 0..1. One channel becomes grey; of more than three channels,
    the first three are shown.

    Args:
        source: the source of the rows, all of which are read once.
        factor: side of the square in pixels; squares at the right and lower edge may be smaller.

    Returns:
        uint8 (ceil(height / factor), ceil(width / factor), 3).
    """
    height, width = -(-source.height // factor), -(-source.width // factor)
    picture = np.empty((height, width, 3), np.uint8)
    rows_at_once = max(1, _PIXELS_AT_ONCE // (source.width * factor))
    for start in range(0, height, rows_at_once):
        end = min(start + rows_at_once, height)
        picture[start:end] = _shrunk(source.read(start * factor, min(end * factor, source.height)), factor)
    return picture


def _shrunk(pixels: Pixels, factor: int) -> Picture:
    channels = min(pixels.shape[2], 3) if pixels.shape[2] != 2 else 1
    colours = pixels[:, :, :channels]
    means = colours if factor == 1 else box_means(colours, factor)
    if pixels.dtype.kind == "u":
        means = means * (255 / np.iinfo(pixels.dtype).max)
    else:
        means = np.clip(np.nan_to_num(means), 0, 1) * 255
    return np.broadcast_to(np.rint(means), (*means.shape[:2], 3)).astype(np.uint8)


def box_means(pixels: Pixels, factor: int) -> Pixels:
    """Returns means over squares; at an edge, the mean is over the pixels in the image."""
    sums = pixels.astype(np.float32)
    for axis in (0, 1):
        starts = np.arange(0, pixels.shape[axis], factor)
        counts = np.minimum(starts + factor, pixels.shape[axis]) - starts
        shape = [1, 1, 1]
        shape[axis] = len(starts)
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape).astype(np.float32)
    return sums
