"""Tests boxes, masks and texts over an image; an image of any size must stay visible below them."""

import numpy as np
import pytest

from xcit.draw.detections import draw_detections, enlargement
from xcit.draw.labels import palette


def drawn(size: tuple[int, int], text: str) -> np.ndarray:
    """Draws one object in the middle of a white image, and returns the picture."""
    height, width = size
    image = np.full((height, width, 3), 255, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    box = (width // 4, height // 4, width // 2, height // 2)
    return np.asarray(draw_detections(image, [box], [1], [text], [mask]))


@pytest.mark.parametrize(
    ("size", "times"),
    [((28, 28), 9), ((64, 96), 4), ((239, 400), 2), ((240, 320), 1), ((480, 640), 1), ((3, 400), 3), ((2, 3000), 1)],
)
def test_small_images_are_enlarged(size, times):
    assert enlargement(*size) == times
    assert drawn(size, "Bag 0.91").shape == (times * size[0], times * size[1], 3)


@pytest.mark.parametrize("size", [(28, 28), (64, 96), (480, 640)])
def test_texts_leave_the_picture_visible(size):
    """Texts cover only a small part of the object and of the image around it."""
    picture = drawn(size, "Ankle boot 0.91").astype(int)
    mixed = np.floor(0.55 * 255 + 0.45 * palette(2)[1] + 0.5)
    height, width = picture.shape[:2]
    inside = picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
    assert (abs(inside - mixed).max(-1) <= 1).mean() > 0.8
    assert (picture == 255).all(-1).sum() > 0.6 * height * width  # three quarters are around the object


def test_each_pixel_of_a_mask_becomes_a_square():
    """In the enlarged image, the mask covers the same part as before."""
    with_text, times = drawn((28, 28), ""), enlargement(28, 28)
    assert (with_text[: 6 * times] == 255).all()
    middle = with_text[8 * times : 20 * times, 8 * times : 20 * times]
    assert (middle == middle[0, 0]).all()
    assert not (middle[0, 0] == 255).all()
