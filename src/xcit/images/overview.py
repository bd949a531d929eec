"""Makes small copies of large images, for display."""

import numpy as np

from xcit.images.resize_8bit import Pixels as Picture
from xcit.images.rows import ImageRows, Pixels

_PIXELS_AT_ONCE = 2**22


def overview(source: ImageRows, factor: int) -> Picture:
    """Returns a small 8-bit RGB copy of an image, in which each pixel is the mean of a square of pixels.

    Unsigned integers are scaled from the full range of their type to 0..255. Floats are scaled from 0..1 to 0..255, and
    values outside 0..1 are clipped. An image with one or two channels becomes grey, from its first channel. An image
    with more than three channels is shown by its first three channels.

    Args:
        source: the source of the rows. Each row is read once.
        factor: side of the square in pixels. Squares at the right and lower edges may be smaller.

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
    """Returns the means over squares of `factor` x `factor` pixels, float32. Squares at the edges may be smaller."""
    sums = pixels.astype(np.float32)
    for axis in (0, 1):
        starts = np.arange(0, pixels.shape[axis], factor)
        counts = np.minimum(starts + factor, pixels.shape[axis]) - starts
        shape = [1, 1, 1]
        shape[axis] = len(starts)
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape).astype(np.float32)
    return sums
