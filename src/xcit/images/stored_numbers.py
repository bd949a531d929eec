"""Reads the numbers stored in an image file, which Pillow scales or inverts in order to show them as grey values."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from xcit.errors import XCiTError

_STEP_BY_BITS = {"2": 85, "4": 17}
"""Pillow multiplies grey values of fewer than 8 bits by this, so that they reach 255."""


def stored_numbers(image: Image.Image, load: Callable[[Image.Image], object]) -> np.ndarray:
    """Returns each pixel's number as stored in the file (1, 2, 4, 8, 12, 16 or 32 bits), or its index into a palette.

    If a PNG or TIFF of 4 bits stores 3, Pillow shows the grey value 51, and it scales a PGM whose largest number is 20
    in the same way. It shows 0 as 255 for a PBM, and for a TIFF in which zero is white. This function returns 3 and 0.

    Args:
        image: an opened image whose pixels have not been read.
        load: reads the pixels.

    Returns:
        Integers (h, w).

    Raises:
        XCiTError: if the file holds colours, or a format that does not preserve numbers.
    """
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "webp"):
        raise XCiTError(
            "a JPEG picture, whose numbers are not the ones that were written: a label image is a grey or palette PNG"
        )
    codec, raw_mode, largest = _coding(image)
    load(image)
    if image.mode not in ("L", "P", "1", "I", "I;16", "I;16B"):
        raise XCiTError(
            f"a colour picture (mode {image.mode}): a label image has one number per pixel (the class), as in a "
            "grey or palette PNG"
        )
    values = np.asarray(image)
    if image.mode == "1":
        values = values.astype(np.uint8)
    if codec.startswith("ppm") and largest:
        shown = 65535 if image.mode.startswith("I") else 255
        return np.rint(values.astype(np.float64) * largest / shown).astype(np.int32)
    kind, _, layout = raw_mode.partition(";")
    if kind not in ("L", "1"):
        return values
    if "I" in layout:
        values = (1 if kind == "1" else 255) - values
    return values // _STEP_BY_BITS.get(layout[:1], 1)


def _coding(image: Image.Image) -> tuple[str, str, int]:
    """Returns the decoder, Pillow's name for the layout of pixels, and a PGM's largest number; "" if unknown."""
    tiles = getattr(image, "tile", ())
    if not tiles:
        return "", "", 0
    codec, _, _, arguments = tiles[0]
    listed: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else (arguments,)
    largest = listed[1] if codec.startswith("ppm") and len(listed) > 1 and isinstance(listed[1], int) else 0
    return codec, str(listed[0]) if listed else "", largest
