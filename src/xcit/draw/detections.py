"""Detections as pictures: masks, boxes, class names and scores over the image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xcit.data.coco_masks import decode_mask
from xcit.draw.labels import palette
from xcit.inference.detect import DetectedObjects


def draw_detections(result: DetectedObjects, *, opacity: float = 0.45) -> Image.Image:
    """The image with its objects, each class in one colour, the best on top; one mask at a time is unpacked."""
    height, width = result.image.shape[:2]
    colours = palette(1 + max((one.label for one in result.objects), default=0))  # its first is the background's
    pixels = result.image.copy()
    for one in reversed(result.objects):
        rows, columns = _window(one.box, (height, width))
        mask = decode_mask(one.mask, (height, width))[rows, columns].astype(bool)
        part = pixels[rows, columns]
        part[mask] = ((1 - opacity) * part[mask] + opacity * colours[one.label] + 0.5).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(width, height) / 300))
    font = ImageFont.load_default(max(10, round(min(width, height) / 40)))
    for one in reversed(result.objects):
        colour = tuple(int(value) for value in colours[one.label])
        x, y, box_width, box_height = one.box
        draw.rectangle((x, y, max(x, x + box_width - 1), max(y, y + box_height - 1)), outline=colour, width=line)
        text = f"{one.name} {one.score:.2f}"
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        # Above the box if there is room, else within.
        place = (min(max(x, 0), max(0, width - right)), y - bottom - 2 if y > bottom + 2 else max(y, 0))
        draw.rectangle((place[0], place[1], place[0] + right + 2, place[1] + bottom + 2), fill=colour)
        ink = "black" if sum(colour) > 380 else "white"
        draw.text((place[0] + 1, place[1]), text, fill=ink, font=font)
    return picture


def _window(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of an image that a box's mask may reach."""
    x, y, width, height = box
    return (
        slice(max(0, int(y) - 2), min(size[0], int(y + height) + 3)),
        slice(max(0, int(x) - 2), min(size[1], int(x + width) + 3)),
    )
