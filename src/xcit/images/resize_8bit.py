"""Resizes 8-bit pixels with OpenCV's fixed-point arithmetic, which the published detectors and segmenters used.

The results are bit-identical to those of `cv2.resize` (OpenCV 4, x86) on uint8 pixels, with INTER_LINEAR or
INTER_NEAREST and no other options. Unlike Pillow and torchvision, OpenCV's linear interpolation does not antialias when
it reduces an image.

Shapes: `h` and `w` are the height and width of an image, and `C` is its number of channels.
"""

import numpy as np
from numpy.typing import NDArray

from xcit.errors import XCiTError

_BITS = 11
"""Number of fractional bits of a weight. A weight of 1 is stored as 2**11 = 2048."""

Pixels = NDArray[np.uint8]


def fitted_size(height: int, width: int, *, long_side: int, short_side: int) -> tuple[int, int]:
    """Returns the size of an image that is scaled to fit both limits, like mmcv's `rescale_size`.

    The result is the largest size with the same aspect ratio within the limits. Each side is rounded half up, and is at
    least 1. For example, an image of 640 x 480 pixels is scaled to 683 x 512 for the limits 2048 and 512.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        long_side: limit of the long side in pixels.
        short_side: limit of the short side in pixels.

    Returns:
        (height, width) in pixels.
    """
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_bilinear_8bit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes pixels (h, w) or (h, w, C) to `size` (height, width) by bilinear interpolation."""
    height, width = pixels.shape[:2]
    new_height, new_width = _checked(pixels, size)
    if (height, width) == (new_height, new_width):
        return pixels.copy()
    if (height, width) == (2 * new_height, 2 * new_width):  # in this case OpenCV takes the mean of four pixels
        four = pixels.reshape(new_height, 2, new_width, 2, *pixels.shape[2:]).sum(axis=(1, 3), dtype=np.int32)
        return ((four + 2) >> 2).astype(np.uint8)
    (left, right), (weight_left, weight_right) = bilinear_taps(width, new_width, resets_weights=True)
    columns = (slice(None), *[None] * (pixels.ndim - 2))
    # As in OpenCV, the width is resized before the height. The other order would round differently.
    wide = pixels[:, left] * weight_left[columns] + pixels[:, right] * weight_right[columns]
    (top, bottom), (weight_top, weight_bottom) = bilinear_taps(height, new_height, resets_weights=False)
    rows = (slice(None), *[None] * (pixels.ndim - 1))
    wide >>= 4
    total = ((wide[top] * weight_top[rows]) >> 16) + ((wide[bottom] * weight_bottom[rows]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def resize_nearest_8bit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes labels (h, w) or pixels (h, w, C) to `size` (height, width) by nearest-neighbour interpolation."""
    new_height, new_width = _checked(pixels, size)
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(pixels.shape[:2], (new_height, new_width), strict=True)
    )
    return pixels[rows[:, None], columns]


def bilinear_taps(
    old: int, new: int, *, resets_weights: bool
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int32], ...]]:
    """Returns the neighbours and weights for the bilinear interpolation along one axis.

    If a new pixel is beyond the centre of the first or last old pixel, both neighbours of the new pixel are this old
    pixel. OpenCV then resets the two weights to 2048 and 0 when it resizes the width, but not when it resizes the
    height. The two cases differ only by rounding.

    Args:
        old: number of pixels before resizing.
        new: number of pixels after resizing.
        resets_weights: whether the weights are reset to 2048 and 0 if both neighbours are the same old pixel.

    Returns:
        The indices of the first and second neighbour of each new pixel, (new,) each, and the weights of the first and
        second neighbours, (new,) each. The two weights of a pixel have the sum 2048.
    """
    # As in OpenCV, the position is computed in double precision and rounded to single precision. The fraction is
    # computed in single precision.
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    share = position - first.astype(np.float32)
    if resets_weights:
        share[(first < 0) | (first >= old - 1)] = 0
    one = np.float32(1 << _BITS)
    weights = tuple(np.rint(part * one).astype(np.int32) for part in (np.float32(1) - share, share))
    return (first.clip(0, old - 1), (first + 1).clip(0, old - 1)), weights


def _checked(pixels: Pixels, size: tuple[int, int]) -> tuple[int, int]:
    assert pixels.dtype == np.uint8
    assert pixels.ndim in (2, 3)
    if min(size) < 1:
        raise XCiTError(f"an image can't be scaled to {size[0]}x{size[1]} pixels")
    return size
