"""Reads the numbers that an image file stores. Pillow scales or inverts some of these numbers to get grey values."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from xcit.errors import XCiTError

_STEP_BY_BITS = {"2": 85, "4": 17}
"""The factor by which Pillow multiplies grey values of 2 or 4 bits, so that the largest value becomes 255."""


def stored_numbers(image: Image.Image, load: Callable[[Image.Image], object]) -> np.ndarray:
    """Returns the number that the file stores for each pixel, which is an index if the image has a palette.

    The numbers may have 1, 2, 4, 8, 12, 16 or 32 bits. Pillow changes the stored numbers of some files, and this
    function restores the numbers:

    - Pillow scales numbers of 2 or 4 bits to 0..255. For example, the number 3 in a 4-bit PNG becomes 51. Pillow also
      scales a PGM file if its largest number is not 255.
    - Pillow inverts PBM files, and TIFF files in which 0 means white: 0 becomes 255.

    Args:
        image: an image that Pillow has opened. Its pixels have not been read yet.
        load: function that reads the pixels of the image.

    Returns:
        Integers (h, w).

    Raises:
        XCiTError: if the file contains colours, or its compression (such as JPEG) does not preserve numbers.
    """
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "webp"):
        raise XCiTError(
            "a JPEG picture, but JPEG changes the stored numbers: a label image must be a grey or palette PNG"
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
    """Returns the name of Pillow's decoder, Pillow's name for the pixel layout, and the largest number of a PGM file.

    An unknown name is "". The largest number is 0 if it is unknown or the file is not a PGM.
    """
    tiles = getattr(image, "tile", ())
    if not tiles:
        return "", "", 0
    codec, _, _, arguments = tiles[0]
    listed: tuple[Any, ...] = arguments if isinstance(arguments, tuple) else (arguments,)
    largest = listed[1] if codec.startswith("ppm") and len(listed) > 1 and isinstance(listed[1], int) else 0
    return codec, str(listed[0]) if listed else "", largest
