"""Converts pixels of any type to 8 bits."""

import numpy as np
from PIL import ExifTags, Image

from xcit.errors import XCiTError


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scales pixels to 8 bits: uint8, uint16, bool, or floating-point in 0..1.

    Raises:
        XCiTError: if they have another type or are out of range.
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
        if not (low >= 0 and high <= 1):  # in this form, NaN fails too
            raise XCiTError(f"floating-point pixels must be in 0..1, found {low:g}..{high:g}")
        return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    raise XCiTError(f"pixels of type {pixels.dtype}; give uint8, uint16, bool, or floating-point numbers in 0..1")


def integers_to_8_bits(image: Image.Image) -> np.ndarray:
    """Scales images of the modes "I" and "I;16", which have 16-bit (rarely 12-bit) grey values, to 8 bits."""
    pixels = np.asarray(image).astype(np.int32)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise XCiTError(f"integer pixels must be in 0..65535, found {pixels.min()}..{pixels.max()}")
    tags = getattr(image, "tag_v2", {})
    num_bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    grey = _scale_integers(pixels, white=4095 if num_bits == 12 else 65535)
    if image.mode != "I" and tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = 255 - grey  # white is zero in this TIFF; Pillow inverts only 8-bit images
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return grey


def _scale_integers(pixels: np.ndarray, white: int) -> np.ndarray:
    """Scales 0..white to 0..255, rounded to the nearest. For white 65535, this divides by 257."""
    return ((pixels.astype(np.int32) * 255 + white // 2) // white).astype(np.uint8)
