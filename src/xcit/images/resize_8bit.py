"""Resizes 8-bit pixels exactly as for the published detectors and segmenters, with OpenCV's fixed-point arithmetic.

The results are bit for bit those of `cv2.resize` (OpenCV 4, x86, no other options) for uint8, with INTER_LINEAR and
INTER_NEAREST. Unlike Pillow and torchvision, its linear interpolation does not smooth before it reduces the size.

Shapes: `h`, `w` size of an image, `C` its channels, if it has such an axis.
"""

import numpy as np
from numpy.typing import NDArray

from xcit.errors import XCiTError

_BITS = 11
"""Number of fractional bits of a weight: a weight of 1 is stored as 2048."""

Pixels = NDArray[np.uint8]


def fitted_size(height: int, width: int, *, long_side: int, short_side: int) -> tuple[int, int]:
    """Returns the largest size within both bounds, each side rounded half up, at least 1 (mmcv's `rescale_size`).

    For example, 640 x 480 pixels are scaled to 683 x 512 within the bounds 2048 and 512.

    Returns:
        (height, width) in pixels.
    """
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_bilinear_8bit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Scales pixels (h, w) or (h, w, C) to `size`, which is (height, width)."""
    height, width = pixels.shape[:2]
    new_height, new_width = _checked(pixels, size)
    if (height, width) == (new_height, new_width):
        return pixels.copy()
    if (height, width) == (2 * new_height, 2 * new_width):  # in this case OpenCV takes the mean of four pixels
        four = pixels.reshape(new_height, 2, new_width, 2, *pixels.shape[2:]).sum(axis=(1, 3), dtype=np.int32)
        return ((four + 2) >> 2).astype(np.uint8)
    (left, right), (weight_left, weight_right) = bilinear_taps(width, new_width, resets_weights=True)
    columns = (slice(None), *[None] * (pixels.ndim - 2))
    # Rows come before columns, as in OpenCV; the other order would round differently.
    wide = pixels[:, left] * weight_left[columns] + pixels[:, right] * weight_right[columns]
    (top, bottom), (weight_top, weight_bottom) = bilinear_taps(height, new_height, resets_weights=False)
    rows = (slice(None), *[None] * (pixels.ndim - 1))
    wide >>= 4
    total = ((wide[top] * weight_top[rows]) >> 16) + ((wide[bottom] * weight_bottom[rows]) >> 16)
    return ((total + 2) >> 2).astype(np.uint8)


def resize_nearest_8bit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Scales labels (h, w) or pixels (h, w, C) to `size` (height, width) by nearest-neighbour interpolation."""
    new_height, new_width = _checked(pixels, size)
    rows, columns = (
        np.minimum(np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64), old - 1)
        for old, new in zip(pixels.shape[:2], (new_height, new_width), strict=True)
    )
    return pixels[rows[:, None], columns]


def bilinear_taps(
    old: int, new: int, *, resets_weights: bool
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int32], ...]]:
    """Returns the two old neighbours of each new pixel along an axis, and their weights, which add up to 2048.

    Beyond an edge, both neighbours are the last pixel. With `resets_weights`, the first of them then gets the whole
    weight. OpenCV does this only along rows; the results differ in the last bit.
    """
    # The position is computed in double precision and stored in single precision; the fraction is in single precision.
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
