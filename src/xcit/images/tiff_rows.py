"""Reads TIFF and BigTIFF files, in tiles or strips, a few rows at a time through tifffile."""

import logging
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.array_rows import check_pixel_type, file_identity
from xcit.images.kept_rows import KeptRows
from xcit.images.rows import Mask, Pixels, RowsInfo
from xcit.images.transforms import level_place
from xcit.terminal import logging_only

_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1000.0, "cm": 10000.0, "nm": 0.001}  # Unicode has two µ


class TiffRows:
    """A row reader for the first image of a TIFF file, or for one level of the image if it is a pyramid.

    A decoded strip or row of tiles stays in memory until rows outside it are requested. So if the image is read from
    top to bottom, each strip or row of tiles is decoded once.

    Raises:
        XCiTError: if the file can't be read, the type of its pixels is not supported, or tifffile is not installed.
    """

    def __init__(self, path: Path, level: int = 0, *, ranged: bool = False) -> None:
        self._ranged = ranged
        tifffile = imported("tifffile", f"{path}: TIFF by rows")
        identity = file_identity(path)
        try:
            with _quiet_tifffile():
                self._file = tifffile.TiffFile(path)
        except Exception as error:
            raise XCiTError(f"{path}: a damaged or unsupported TIFF ({_line(error)})") from error
        try:
            with _quiet_tifffile():
                self._open(path, identity, level)
        except Exception as error:
            self.close()
            if isinstance(error, XCiTError):
                raise
            raise XCiTError(f"{path}: a damaged or unsupported TIFF ({_line(error)})") from error

    def _open(self, path: Path, identity: str, level: int) -> None:
        levels = self._file.series[0].levels
        if not 0 <= level < len(levels):
            raise XCiTError(f"{path}: no level {level}: the file has {len(levels)} levels, counted from 0")
        pages = [one.keyframe for one in levels]
        self._page = page = pages[level]
        self.height, self.width, self.channels = page.imagelength, page.imagewidth, page.samplesperpixel
        if page.dtype is None or page.photometric == 3:
            raise XCiTError(f"{path}: a TIFF with a palette or an unknown type of pixels: convert it to grey or RGB")
        self._dtype = np.dtype(page.dtype)
        check_pixel_type(self._dtype, str(path), ranged=self._ranged)
        self._is_planar = page.planarconfig == 2 and self.channels > 1
        # Uncompressed rows that are contiguous in the file can be read without decoding a whole strip.
        self._is_plain = page.is_contiguous and not page.is_tiled and not self._is_planar
        self._band_rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, self.height)
        self._kept = KeptRows(self.height, self._band_rows, self._decode_band)
        a_row = self.width * self.channels * self._dtype.itemsize
        self.info = RowsInfo(
            name=str(path),
            identity=f"{identity} {level}",
            levels=tuple((one.imagelength, one.imagewidth) for one in pages),
            level=level,
            rows_at_once=1 if self._is_plain else self._band_rows,
            buffer_bytes=0 if self._is_plain else self._band_rows * a_row,
            metadata=_metadata(self._file, pages[0], page),
        )

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end, as a view of decoded tiles or in a new array."""
        pixels = self._plain_rows(start, end) if self._is_plain else self._kept.read(start, end)[0]
        if self._page.photometric == 0:  # 0 means white
            top = np.iinfo(self._dtype).max if self._dtype.kind == "u" else 1
            pixels = (top - pixels).astype(self._dtype)
        return pixels

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _plain_rows(self, start: int, end: int) -> Pixels:
        dtype = self._dtype.newbyteorder(self._file.byteorder)
        a_row = self.width * self.channels * dtype.itemsize
        data = self._bytes(self._page.dataoffsets[0] + start * a_row, (end - start) * a_row, start, a_row)
        pixels = np.frombuffer(data, dtype).reshape(end - start, self.width, self.channels)
        return pixels.astype(self._dtype, copy=False)

    def _decode_band(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        """Decodes one row of tiles or one strip: the pixel rows start:end."""
        page, number = self._page, start // self._band_rows
        band = np.empty((end - start, self.width, self.channels), self._dtype)
        across = -(-self.width // page.tilewidth) if page.is_tiled else 1
        down = -(-self.height // self._band_rows)
        for plane in range(self.channels if self._is_planar else 1):
            for column in range(across):
                self._decode_segment(band, start, plane, (plane * down + number) * across + column)
        return band, None

    def _decode_segment(self, band: Pixels, start: int, plane: int, index: int) -> None:
        page = self._page
        count = page.databytecounts[index]
        data = self._bytes(page.dataoffsets[index], count, start) if count else None
        try:
            segment, (_, _, _, left, _), (_, height, width, _) = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:
            where = f"rows {start} to {start + len(band) - 1}"
            raise XCiTError(f"{self.info.name}: {where} can't be decoded ({_line(error)})") from error
        place = band[:height, left : left + width, plane : plane + 1 if self._is_planar else None]
        # A tile may extend beyond the edges of the image. A tile without data is filled with 0.
        place[:] = 0 if segment is None else segment[0, : place.shape[0], : place.shape[1]]

    def _bytes(self, offset: int, count: int, row: int, bytes_a_row: int = 0) -> bytes:
        handle = self._file.filehandle
        handle.seek(offset)
        data: bytes = handle.read(count)
        if len(data) < count:
            row += len(data) // bytes_a_row if bytes_a_row else 0
            raise XCiTError(f"{self.info.name}: truncated: the file ends in row {row} of {self.height}")
        return data


_NODATA = 42113
"""The number of the TIFF tag in which GDAL stores the nodata value, which is the value of missing pixels."""


def is_georeferenced(path: Path) -> bool:
    """Returns whether a TIFF file contains a georeference or GDAL metadata, so that rasterio should read the file.

    The result is false if the file can't be read. The reader that opens the file next reports the error.
    """
    try:
        import tifffile

        with _quiet_tifffile(), tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            return page.is_geotiff or page.is_gdal or _NODATA in page.tags
    except Exception:  # a damaged file can cause any error in the parser
        return False


def _quiet_tifffile() -> AbstractContextManager[None]:
    """Suppresses tifffile's log lines about damaged tags. If this reader needs a damaged tag, an error is raised."""
    return logging_only("tifffile", logging.CRITICAL)


def _metadata(file: Any, largest: Any, page: Any) -> dict[str, Any]:
    sizes = ((one.imagelength, one.imagewidth) for one in (largest, page))
    metadata: dict[str, Any] = {"place": level_place(*sizes)}
    mpp = _micrometres(file, largest)
    return metadata if mpp is None else metadata | {"mpp": mpp}


def _micrometres(file: Any, page: Any) -> float | None:
    """Returns the micrometres per pixel of an image, or None if the file does not contain them.

    For slides of Aperio scanners and for OME-TIFF, the number is read from their metadata. For any other TIFF, it is
    computed from the resolution.
    """
    if page.is_svs:
        found = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description)
        return float(found[1]) if found else None
    if file.is_ome:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
        size = re.search(r'\bPhysicalSizeX="([0-9.eE+-]+)"', pixels[0]) if pixels else None
        unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', pixels[0]) if pixels else None
        scale = _MICROMETRES.get(unit[1] if unit else "µm")
        return float(size[1]) * scale if size and scale else None
    unit, resolution = page.tags.get("ResolutionUnit"), page.tags.get("XResolution")
    length = {2: 25400.0, 3: 10000.0}.get(unit.value if unit else 1)  # micrometres per inch and per centimetre
    if length is None or resolution is None or not resolution.value[0]:
        return None
    return length * resolution.value[1] / resolution.value[0]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
