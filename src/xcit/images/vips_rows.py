"""Reads JPEG and PNG files a few rows at a time through libvips, if they are too large to be decoded as a whole."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.array_rows import file_identity
from xcit.images.rows import Pixels, RowsInfo

_TYPES: dict[str, np.dtype[Any]] = {"uchar": np.dtype(np.uint8), "ushort": np.dtype(np.uint16)}

_BUFFER_BYTES = 2**25
"""Approximate size in bytes of libvips's buffers for an image that is read from top to bottom."""


def is_too_large(path: Path) -> bool:
    """Returns whether an image has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels; false if its size can't be read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.width * image.height > limit
    except Image.DecompressionBombError:
        return True
    except Exception:  # the reader that opens the file next reports the error
        return False


class VipsRows:
    """A row reader for an image file with 8 or 16 bits, grey or RGB. Transparent parts are shown over white.

    The image is made upright by its EXIF orientation, unless `ignore_exif` is true. The file is decoded from top to
    bottom, and again from the top if earlier rows are requested. If the image has to be rotated, libvips decodes the
    whole image first, usually to a temporary file.

    Raises:
        XCiTError: if the file can't be read, or pyvips is not installed.
    """

    def __init__(self, path: Path, *, ignore_exif: bool = False) -> None:
        pyvips = imported("pyvips", f"{path}: an image as large as this")
        self._path, self._error, self._ignore_exif = path, pyvips.Error, ignore_exif
        identity = file_identity(path)
        try:
            self._image = self._opened()
        except pyvips.Error as error:
            raise XCiTError(f"{path}: libvips can't open it ({error})") from error
        self.height, self.width, self.channels = self._image.height, self._image.width, self._image.bands
        if self._image.format not in _TYPES or self.channels not in (1, 3):
            raise XCiTError(
                f"{path}: pixels of type {self._image.format}: convert the image to 8 or 16 bits, grey or RGB"
            )
        self._dtype = _TYPES[self._image.format]
        self._region: Any = None
        self._next = 0
        self.info = RowsInfo(name=str(path), identity=identity, buffer_bytes=_BUFFER_BYTES)

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end as a view of libvips's output."""
        import pyvips

        try:
            if self._region is None or start < self._next:
                self._region = pyvips.Region.new(self._opened())
            self._next = end
            data: Any = self._region.fetch(0, start, self.width, end - start)
        except self._error as error:
            self._region = None
            where = f"rows {start} to {end - 1} of {self.height}"
            raise XCiTError(f"{self._path}: truncated or damaged in {where} ({error})") from error
        return np.frombuffer(data, self._dtype).reshape(end - start, self.width, self.channels)

    def close(self) -> None:
        """Closes the file."""
        self._region = self._image = None

    def _opened(self) -> Any:
        import pyvips

        image = pyvips.Image.new_from_file(str(self._path), access="sequential", fail_on="truncated")
        if not self._ignore_exif and image.get_typeof("orientation") and image.get("orientation") != 1:
            image = pyvips.Image.new_from_file(str(self._path), access="random", fail_on="truncated").autorot()
        if image.hasalpha():
            image = image.flatten(background=65535 if image.format == "ushort" else 255)
        if image.interpretation not in ("srgb", "rgb", "rgb16", "b-w", "grey16"):
            image = image.colourspace("srgb")
        return image
