"""Reads georeferenced images a few rows at a time through rasterio.

The formats are GeoTIFF, Cloud Optimized GeoTIFF, JPEG 2000 and VRT.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import imported
from xcit.images.array_rows import check_pixel_type, file_identity
from xcit.images.kept_rows import KeptRows
from xcit.images.rows import Mask, Pixels, ReadMask, RowsInfo
from xcit.images.transforms import level_place

_GDAL_CACHE = 2**26


class GeoRows:
    """A row reader for a file that rasterio can open, or for one of the file's overviews.

    The mask of the reader is false for missing pixels:

    - If the file has a mask band or transparency, a pixel is missing where the mask band or the transparency is 0.
    - Otherwise, the file's nodata value decides. A pixel of unsigned integers is missing if all selected bands have the
      nodata value. One band is not enough, because the nodata value is often 0, which is also the value of a dark
      pixel. A pixel of another type is missing if any selected band has the nodata value.
    - A floating-point pixel is also missing if any selected band is not finite.

    `bands` selects bands, counted from 1. A selected transparency band is read as a channel and is not used as a mask.
    If `bands` is None, all bands except transparency are read. If these bands are exactly red, green and blue, they are
    read in the order red, green, blue.

    Raises:
        XCiTError: if the file can't be read, the type of its pixels is not supported, or rasterio is not installed.
    """

    read_mask: ReadMask | None

    def __init__(
        self, path: Path, level: int = 0, *, bands: tuple[int, ...] | None = None, ranged: bool = False
    ) -> None:
        rasterio = imported("rasterio", f"{path}: a georeferenced image")
        identity = file_identity(path)
        self._env = rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE)
        try:
            with self._env, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # rasterio warns if there is no georeference
                whole = rasterio.open(path)
                self._file: Any = whole
                sizes = [(whole.height, whole.width)]
                sizes += [(-(-whole.height // by), -(-whole.width // by)) for by in whole.overviews(1)]
                if not 0 <= level < len(sizes):
                    raise XCiTError(f"{path}: no level {level}: the file has {len(sizes)} levels, counted from 0")
                if level:
                    self._file = rasterio.open(path, overview_level=level - 1)
                    whole.close()
        except rasterio.errors.RasterioError as error:
            raise XCiTError(f"{path}: rasterio can't open it ({error})") from error
        self._path = path
        try:
            self._describe(identity, level, tuple(sizes), bands, ranged)
        except XCiTError:
            self.close()
            raise

    def _describe(
        self,
        identity: str,
        level: int,
        sizes: tuple[tuple[int, int], ...],
        bands: tuple[int, ...] | None,
        ranged: bool,
    ) -> None:
        from rasterio.enums import ColorInterp, MaskFlags

        file, name = self._file, str(self._path)
        self._bands = list(bands) if bands else _colour_bands(file)
        for band in self._bands:
            if band not in file.indexes:
                raise XCiTError(f"{name}: no band {band}: the file has {file.count} bands, counted from 1")
        kinds = {np.dtype(file.dtypes[band - 1]) for band in self._bands}
        if len(kinds) > 1 or any(file.colorinterp[band - 1] is ColorInterp.palette for band in self._bands):
            raise XCiTError(f"{name}: the bands have a palette or different pixel types: choose other bands by --bands")
        (self._dtype,) = kinds
        check_pixel_type(self._dtype, name, ranged=ranged)
        self.height, self.width, self.channels = file.height, file.width, len(self._bands)
        flags = {flag for band in self._bands for flag in file.mask_flag_enums[band - 1]}
        # A selected band is read as a channel even if the file marks it as alpha, because some programs mark the last
        # of four bands as alpha by default.
        is_channel = any(file.colorinterp[band - 1] is ColorInterp.alpha for band in self._bands)
        self._has_mask_band = MaskFlags.per_dataset in flags and not (is_channel and MaskFlags.alpha in flags)
        self._nodata = None if self._has_mask_band else file.nodatavals[self._bands[0] - 1]
        is_masked = self._has_mask_band or self._nodata is not None or self._dtype.kind == "f"
        self.read_mask = self._read_mask if is_masked else None
        tile_rows = min(max(file.block_shapes[band - 1][0] for band in self._bands), self.height)
        self._kept = KeptRows(self.height, tile_rows, self._decode)
        tiles = tile_rows * self.width * (self.channels * self._dtype.itemsize + is_masked)
        metadata: dict[str, Any] = {"place": level_place(sizes[0], (self.height, self.width))}
        if file.crs is not None or not file.transform.is_identity:
            metadata["transform"] = tuple(float(number) for number in file.transform[:6])
        if file.crs is not None:
            metadata["crs"] = file.crs.to_wkt()
        if self._nodata is not None:
            metadata["nodata"] = self._nodata
        self.info = RowsInfo(
            name=name,
            identity=f"{identity} level {level} bands {self._bands}",
            levels=sizes,
            level=level,
            rows_at_once=tile_rows,
            buffer_bytes=tiles + min(_GDAL_CACHE, tiles),
            metadata=metadata,
        )

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end, as a view of decoded tiles or in a new array."""
        return self._kept.read(start, end)[0]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_mask(self, start: int, end: int) -> Mask:
        mask = self._kept.read(start, end)[1]
        assert mask is not None
        return mask

    def _decode(self, start: int, end: int) -> tuple[Pixels, Mask | None]:
        import rasterio

        window = rasterio.windows.Window(0, start, self.width, end - start)
        pixels = np.empty((end - start, self.width, self.channels), self._dtype)
        mask: Mask | None = None
        try:
            with self._env:
                self._file.read(self._bands, window=window, out=pixels.transpose(2, 0, 1))
                if self._has_mask_band:
                    mask = self._file.read_masks(self._bands[0], window=window) > 0
        except rasterio.errors.RasterioError as error:
            reason = error.__cause__ or error
            raise XCiTError(
                f"{self._path}: truncated or damaged in rows {start} to {end - 1} of {self.height} ({reason})"
            ) from error
        if self.read_mask is not None and mask is None:
            mask = present(pixels, self._nodata)
        elif mask is not None and self._dtype.kind == "f":
            mask &= np.all(np.isfinite(pixels), axis=2)
        return pixels, mask


def _colour_bands(file: Any) -> list[int]:
    """Returns all bands except transparency. If they are exactly red, green and blue, they are in this order."""
    from rasterio.enums import ColorInterp

    names = dict(zip(file.indexes, file.colorinterp, strict=True))
    bands = [index for index, name in names.items() if name is not ColorInterp.alpha]
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if sorted(names[band] for band in bands) == sorted(colours):
        bands.sort(key=lambda band: colours.index(names[band]))
    return bands


def present(pixels: Pixels, nodata: float | None) -> Mask:
    """Returns a mask, bool (rows, width): false for missing pixels, according to the nodata rules in `GeoRows`."""
    if pixels.dtype.kind == "u":
        return np.any(pixels != nodata, axis=2)
    there: Mask = (
        np.all(np.isfinite(pixels), axis=2) if pixels.dtype.kind == "f" else np.ones(pixels.shape[:2], np.bool_)
    )
    if nodata is not None and not np.isnan(nodata):
        there &= np.all(pixels != pixels.dtype.type(nodata), axis=2)
    return there
