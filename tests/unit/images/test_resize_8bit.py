"""Compares resized pixels with checksums of OpenCV 4.10's results, and sizes with the published rule."""

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from xcit.errors import XCiTError
from xcit.images.resize_8bit import fitted_size, resize_bilinear_8bit, resize_nearest_8bit

# Height, width and channels of the picture, new height and width, and two CRC-32 sums of cv2.resize's pixels: with
# INTER_LINEAR and with INTER_NEAREST.
OPENCV = [
    (48, 64, 3, 51, 68, 2508778118, 2788846762),
    (37, 53, 3, 101, 20, 3488544781, 3111261824),
    (40, 30, 1, 20, 15, 2229513908, 4161964951),
    (40, 30, 3, 13, 10, 911867986, 2607793526),
    (7, 5, 3, 64, 64, 1661624627, 1667753378),
    (64, 48, 3, 33, 47, 2333622623, 2841375499),
    (5, 5, 1, 5, 9, 1741365769, 3625264113),
    (1, 1, 3, 4, 6, 2665028326, 2665028326),
    (60, 90, 3, 341, 512, 4273316906, 2762158197),
]


def pattern(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    i, j, k = np.ogrid[:height, :width, :channels]
    pixels: NDArray[np.uint8] = ((i * 73 + j * 151 + k * 29 + i * j * 7) % 256).astype(np.uint8)
    return pixels


@pytest.mark.parametrize(("height", "width", "channels", "new_height", "new_width", "linear", "nearest"), OPENCV)
def test_bit_for_bit_as_opencv(
    height: int, width: int, channels: int, new_height: int, new_width: int, linear: int, nearest: int
) -> None:
    pixels, size = pattern(height, width, channels), (new_height, new_width)
    assert zlib.crc32(resize_bilinear_8bit(pixels, size).tobytes()) == linear
    assert zlib.crc32(resize_nearest_8bit(pixels, size).tobytes()) == nearest
    grey = pixels[..., 0]
    assert np.array_equal(resize_bilinear_8bit(grey, size), resize_bilinear_8bit(pixels, size)[..., 0])
    assert np.array_equal(resize_nearest_8bit(grey, size), resize_nearest_8bit(pixels, size)[..., 0])


def test_the_same_size_is_a_copy() -> None:
    pixels = pattern(4, 5, 3)
    same = resize_bilinear_8bit(pixels, (4, 5))
    assert np.array_equal(same, pixels)
    assert same.base is not pixels
    with pytest.raises(XCiTError, match="can't be scaled to 0x3"):
        resize_bilinear_8bit(pixels, (0, 3))


def test_published_sizes() -> None:
    assert fitted_size(480, 640, long_side=2048, short_side=512) == (512, 683)
    assert fitted_size(480, 640, long_side=1333, short_side=800) == (800, 1067)
    assert fitted_size(360, 640, long_side=1333, short_side=800) == (750, 1333)
    assert fitted_size(3, 4000, long_side=2048, short_side=512) == (2, 2048)
    assert fitted_size(1, 9000, long_side=100, short_side=50) == (1, 100)
