"""Converts pixels of several types to uint8."""

import numpy as np
from PIL import ExifTags, Image

from xcit.errors import XCiTError


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Converts pixels of type uint8, uint16, bool or floating-point (in 0..1) to uint8, scaled to 0..255.

    Raises:
        XCiTError: if the pixels have another type, or if floating-point pixels are outside 0..1 or NaN.
    """
    kind = pixels.dtype.kind
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind == "u" and pixels.dtype.itemsize == 1:
        return pixels
    if kind == "u" and pixels.dtype.itemsize == 2:
        return _scale_integers(pixels, white=65535)
    if kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # written with `not`, so that NaN is an error too
            raise XCiTError(f"floating-point pixels must be in 0..1, found {low:g}..{high:g}")
        return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    raise XCiTError(f"pixels of type {pixels.dtype}; the supported types are uint8, uint16, bool, and floats in 0..1")


def integers_to_8_bits(image: Image.Image) -> np.ndarray:
    """Converts a grey PIL image of mode "I" or "I;16" to uint8 (h, w). The grey values have 16 bits (rarely 12).

    Raises:
        XCiTError: if a value is outside 0..65535.
    """
    pixels = np.asarray(image).astype(np.int32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise XCiTError(f"integer pixels must be in 0..65535, found {pixels.min()}..{pixels.max()}")
    tags = getattr(image, "tag_v2", {})
    num_bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    grey = _scale_integers(pixels, white=4095 if num_bits == 12 else 65535)
    if image.mode != "I" and tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = 255 - grey  # in this TIFF, 0 means white; Pillow inverts only 8-bit images
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return grey


def _scale_integers(pixels: np.ndarray, white: int) -> np.ndarray:
    """Scales integers in 0..white to 0..255, rounded to the nearest integer."""
    return ((pixels.astype(np.int32) * 255 + white // 2) // white).astype(np.uint8)
