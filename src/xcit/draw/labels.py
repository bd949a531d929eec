"""Draws label maps: as palette images, or in colour over the image, with a legend."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GOLDEN = 0.618033988749895
"""Difference in hue between two successive classes, as a share of the colour circle, so that they look different."""

_ROW = 18
"""Height of a row of the legend, in pixels."""


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Returns a colour for each class: uint8 (num_classes, 3), red, green and blue.

    The colour of a class depends only on the class index. The first colour is grey, because the first class is usually
    the background.
    """
    colours = [
        colorsys.hsv_to_rgb((index * _GOLDEN) % 1, (0.85, 0.6, 1.0)[index % 3], (0.95, 0.75, 0.55)[index // 3 % 3])
        for index in range(1, num_classes)
    ]
    whole = np.array([(0.45, 0.45, 0.45), *colours][:num_classes]).reshape(-1, 3)
    return (whole * 255 + 0.5).astype(np.uint8)


def label_shares(labels: NDArray[np.uint8]) -> dict[int, float]:
    """Returns a dict from each label in a label map to its share of the pixels, with the largest share first."""
    return shares_of(np.bincount(labels.ravel()))


def shares_of(counts: NDArray[np.int64]) -> dict[int, float]:
    """Returns the same dict as `label_shares`, but computes it from the number of pixels of each label.

    `counts[k]` is the number of pixels of label k. Labels without pixels are left out.
    """
    order = sorted(np.flatnonzero(counts), key=lambda label: -counts[label])
    return {int(label): float(counts[label] / counts.sum()) for label in order}


def middles(labels: NDArray[np.uint8], size: tuple[int, ...], scale: int) -> NDArray[np.uint8]:
    """Reduces a label map to `size`. Each new pixel is the middle pixel of a square of `scale` x `scale` old pixels."""
    if scale == 1:
        return labels
    rows, columns = (middle_pixels(count, length, scale) for count, length in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def middle_pixels(count: int, length: int, scale: int) -> NDArray[np.int64]:
    """Divides a side of `length` pixels into `count` pieces, and returns the index of the middle pixel of each piece.

    A piece has `scale` pixels, but the last piece may have fewer.
    """
    return np.minimum(np.arange(count) * scale + scale // 2, length - 1)


def draw_labels(labels: NDArray[np.uint8], num_classes: int) -> Image.Image:
    """Converts a label map (h, w) to a palette image. The values are the labels; the colours are those of `palette`."""
    picture = Image.fromarray(labels)
    picture.putpalette(palette(num_classes).ravel().tolist())
    return picture


def overlay_labels(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], names: Sequence[str], *, opacity: float = 0.55
) -> Image.Image:
    """Returns a picture of the image with the colours of its labels over it, and a legend below the image.

    The legend lists the labels in the image and their shares of the pixels, with the largest share first.

    Args:
        image: uint8 (h, w, 3).
        labels: label map, uint8 (h, w). Pixels with a label that has no name get no colour.
        names: names of the labels 0, 1, and so on.
        opacity: opacity of the colours, from 0 to 1.
    """
    colours = palette(len(names))
    is_known = labels < len(names)
    mixed = (1 - opacity) * image + opacity * colours[np.where(is_known, labels, 0)]
    picture = Image.fromarray(np.where(is_known[..., None], mixed + 0.5, image).astype(np.uint8))
    shares = {label: share for label, share in label_shares(labels).items() if label < len(names)}
    font = ImageFont.load_default(12)
    texts = [f"{names[label]} {share:.1%}" for label, share in shares.items()]
    width = 26 + int(max((font.getlength(text) for text in texts), default=0))
    columns = max(1, picture.width // width)
    num_rows = -(-len(texts) // columns)
    whole = Image.new("RGB", (max(picture.width, width), picture.height + num_rows * _ROW + 4), "white")
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for place, (label, text) in enumerate(zip(shares, texts, strict=True)):
        left = place % columns * width
        top = picture.height + 4 + place // columns * _ROW
        colour = tuple(int(value) for value in colours[label])
        draw.rectangle((left + 3, top + 1, left + 15, top + 13), fill=colour, outline="black")
        draw.text((left + 20, top), text, fill="black", font=font)
    return whole
