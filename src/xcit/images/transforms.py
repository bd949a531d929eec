"""Affine transforms from the column and row of a pixel to coordinates (x, y), with six numbers in rasterio's order.

A transform (a, b, c, d, e, f) maps column and row to x = a * column + b * row + c and y = d * column + e * row + f.
Pixel corners have whole numbers as column and row: (0, 0) is the upper left corner of the first pixel.
"""

Transform = tuple[float, float, float, float, float, float]

IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def moved(transform: Transform, x: float, y: float) -> Transform:
    """Returns the transform for a part of an image that starts at pixel (x, y), from the transform for the image."""
    a, b, c, d, e, f = transform
    return a, b, a * x + b * y + c, d, e, d * x + e * y + f


def enlarged(transform: Transform, across: float, down: float) -> Transform:
    """Returns the transform for larger pixels: each covers `across` columns and `down` rows of original pixels."""
    a, b, c, d, e, f = transform
    return a * across, b * down, c, d * across, e * down, f


def level_place(largest: tuple[int, ...], level: tuple[int, ...]) -> Transform:
    """Returns the transform from pixels of a pyramid level to pixels of the largest level.

    Args:
        largest: (height, width) of the largest level.
        level: (height, width) of the level.
    """
    return enlarged(IDENTITY, largest[1] / level[1], largest[0] / level[0])
