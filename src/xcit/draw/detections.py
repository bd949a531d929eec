"""Draws detections over an image: masks, boxes, class names and scores."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from xcit.draw.labels import palette

Box = tuple[float, float, float, float]
"""A box: x, y, width and height, in pixels."""


_LEAST_SIDE, _LARGEST_SIDE = 240, 1200
"""Limits of enlargement, in pixels.

An image with a side shorter than the first limit is enlarged, because texts would cover it. No side is enlarged beyond
the second limit.
"""


def enlargement(height: int, width: int) -> int:
    """Returns the integer factor by which an image of this size is enlarged, so that texts do not cover the image."""
    return max(1, min(math.ceil(_LEAST_SIDE / min(height, width)), _LARGEST_SIDE // max(height, width)))


def draw_detections(
    image: NDArray[np.uint8],
    boxes: Sequence[Box],
    labels: Sequence[int],
    texts: Sequence[str],
    masks: Iterable[NDArray[np.uint8]],
    *,
    opacity: float = 0.45,
) -> Image.Image:
    """Returns a picture of the image with the objects.

    All objects of a class have the same colour, and the last object is on top. A small image is enlarged, so that the
    texts do not cover it (see `enlargement`).

    Args:
        image: uint8 (h, w, 3).
        boxes: boxes of the objects.
        labels: labels of the objects, from 1.
        texts: the text at each box.
        masks: masks of the objects, (h, w), 0 or 1. They are read one at a time, so only one has to be in memory.
        opacity: opacity of the masks' colours, from 0 to 1.
    """
    height, width = image.shape[:2]
    colours = palette(1 + max(labels, default=0))  # the first colour is the background's
    pixels = image.copy()
    for box, label, mask in zip(boxes, labels, masks, strict=True):
        rows, columns = _window(box, (height, width))
        inside = mask[rows, columns].astype(bool)
        part = pixels[rows, columns]
        part[inside] = ((1 - opacity) * part[inside] + opacity * colours[label] + 0.5).astype(np.uint8)
    times = enlargement(height, width)
    picture = Image.fromarray(pixels).resize((times * width, times * height), Image.Resampling.NEAREST)
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(width, height) / 300))
    font = ImageFont.load_default(max(10, round(min(width, height) / 40)))
    for box, label, text in zip(boxes, labels, texts, strict=True):
        colour = tuple(int(value) for value in colours[label])
        x, y, box_width, box_height = (times * value for value in box)
        draw.rectangle((x, y, max(x, x + box_width - 1), max(y, y + box_height - 1)), outline=colour, width=line)
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        # The text is above the box if there is enough space, and inside the box otherwise.
        place = (min(max(x, 0), max(0, width - right)), y - bottom - 2 if y > bottom + 2 else max(y, 0))
        draw.rectangle((place[0], place[1], place[0] + right + 2, place[1] + bottom + 2), fill=colour)
        ink = "black" if sum(colour) > 380 else "white"
        draw.text((place[0] + 1, place[1]), text, fill=ink, font=font)
    return picture


def _window(box: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns of an image that the mask of an object with this box can cover."""
    x, y, width, height = box
    return (
        slice(max(0, int(y) - 2), min(size[0], int(y + height) + 3)),
        slice(max(0, int(x) - 2), min(size[1], int(x + width) + 3)),
    )
