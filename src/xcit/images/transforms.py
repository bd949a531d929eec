"""Positions of pixels: affine transforms of (column, row), with the numbers in rasterio's order.

A transform (a, b, c, d, e, f) maps column and row to x = a * column + b * row + c and y = d * column + e * row + f.
Whole numbers are the corners of pixels: (0, 0) is the upper left corner of the first pixel.
"""

Transform = tuple[float, float, float, float, float, float]

IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def moved(transform: Transform, x: float, y: float) -> Transform:
    """Returns the transform of a part of an image, whose first pixel is the pixel (x, y) of the image."""
    a, b, c, d, e, f = transform
    return a, b, a * x + b * y + c, d, e, d * x + e * y + f


def enlarged(transform: Transform, across: float, down: float) -> Transform:
    """Returns the transform of larger pixels, each of which covers `across` x `down` of the original pixels."""
    a, b, c, d, e, f = transform
    return a * across, b * down, c, d * across, e * down, f


def level_place(largest: tuple[int, ...], level: tuple[int, ...]) -> Transform:
    """Returns the transform from pixels of a level to those of the largest level; sizes are (height, width)."""
    return enlarged(IDENTITY, largest[1] / level[1], largest[0] / level[0])
