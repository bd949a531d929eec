"""Opens an image for reading a few rows at a time, with the row reader for its format."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows, NpyRows, file_identity
from xcit.images.geo_rows import GeoRows
from xcit.images.read import ImageSource, read_image
from xcit.images.row_views import BandRows, MaskedRows, RangedRows, RegionRows, ShrunkRows
from xcit.images.rows import ImageRows, RowsInfo, rows_info
from xcit.images.selection import ALL, Selection, level_of
from xcit.images.slide_rows import SlideRows
from xcit.images.sources import STANDARD_INPUT, as_url
from xcit.images.tiff_rows import TiffRows, is_georeferenced
from xcit.images.vips_rows import VipsRows, is_too_large
from xcit.images.zarr_rows import ZarrRows

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".tf8", ".svs"})
GEO_SUFFIXES = frozenset({".vrt", ".jp2"})
SLIDE_SUFFIXES = frozenset({".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm"})
LARGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

_Reader = GeoRows | NpyRows | SlideRows | TiffRows | VipsRows | ZarrRows


@contextmanager
def open_rows(
    source: ImageSource | ImageRows, *, name: str = "the image", selection: Selection = ALL
) -> Iterator[ImageRows]:
    """Opens an image for reading a few rows at a time, and closes it at the end of the `with` block.

    The suffix of a file decides how the file is read:

    - `TIFF_SUFFIXES`: by rasterio if the file contains a georeference or GDAL metadata, otherwise by tifffile.
    - `GEO_SUFFIXES`: by rasterio.
    - `SLIDE_SUFFIXES`: by OpenSlide.
    - `.npy`: by `NpyRows`.
    - `.zarr` (a folder): by zarr.
    - `LARGE_SUFFIXES`: by libvips if the image has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.

    These readers keep the pixel type of the file. `read_image` decodes all other files as a whole, as 8-bit RGB.

    Args:
        source: a path, a URL, the bytes of an image file, a PIL image, an array (H, W) or (H, W, C), a tensor (H, W)
            or (C, H, W), or an `ImageRows`.
        name: name in error messages, for an image that is not a file.
        selection: the part of the image to read.

    Yields:
        The source of the rows.

    Raises:
        XCiTError: "<path>: <reason>" if the image can't be read.
    """
    ranged = selection.value_range is not None
    with ExitStack() as stack:
        if isinstance(source, np.ndarray | Tensor):
            rows: ImageRows = ArrayRows(source, RowsInfo(name=name), ranged=ranged)
        elif isinstance(source, Image.Image | bytes) or not (_is_file(source) or hasattr(source, "height")):
            picture = read_image(cast(ImageSource, source), ignore_exif=selection.ignore_exif)
            rows = ArrayRows(np.asarray(picture), RowsInfo(name=name))
        elif isinstance(source, str | os.PathLike):
            rows = _opened(Path(source), selection, stack)
        else:
            rows = cast(ImageRows, source)
        if selection.mpp is not None:
            _, factor = level_of(rows_info(rows), selection.mpp)
            rows = ShrunkRows(rows, factor) if factor > 1 else rows
        elif selection.level and rows_info(rows).level != selection.level:
            raise XCiTError(f"{rows_info(rows).name}: no level {selection.level}: the image has only one size")
        if selection.bands and not isinstance(rows, GeoRows):  # `GeoRows` has already selected the bands
            rows = BandRows(rows, selection.bands)
        if selection.value_range is not None:
            rows = RangedRows(rows, selection.value_range)
        if selection.mask is not None:
            rows = MaskedRows(rows, stack.enter_context(open_rows(selection.mask, name="the mask")))
        if selection.region is not None:
            rows = RegionRows(rows, selection.region)
        yield rows


def _opened(path: Path, selection: Selection, stack: ExitStack) -> ImageRows:
    """Opens a file at the selected level. `stack` closes the file later."""
    opener = _opener(path, selection)
    if opener is None:
        pixels = np.asarray(read_image(path, ignore_exif=selection.ignore_exif))
        return ArrayRows(pixels, RowsInfo(name=str(path), identity=file_identity(path), buffer_bytes=pixels.nbytes))
    rows = opener(selection.level or 0)
    if selection.mpp is not None:
        with ExitStack() as finest:
            finest.callback(rows.close)
            level, _ = level_of(rows.info, selection.mpp)
            if level == 0:
                finest.pop_all()
        rows = opener(level) if level else rows
    stack.callback(rows.close)
    return rows


def _opener(path: Path, selection: Selection) -> Callable[[int], _Reader] | None:
    """Returns a function that opens a given level of a file, or None if the file has to be decoded as a whole."""
    ranged = selection.value_range is not None
    suffix = path.suffix.lower()
    if suffix in GEO_SUFFIXES or (suffix in TIFF_SUFFIXES and is_georeferenced(path)):
        return lambda level: GeoRows(path, level, bands=selection.bands, ranged=ranged)
    if suffix in TIFF_SUFFIXES:
        return lambda level: TiffRows(path, level, ranged=ranged)
    if suffix in SLIDE_SUFFIXES:
        return lambda level: SlideRows(path, level)
    if suffix == ".npy":
        return lambda level: NpyRows(path, ranged=ranged)
    if suffix == ".zarr":
        return lambda level: ZarrRows(path, level, ranged=ranged)
    if suffix in LARGE_SUFFIXES and is_too_large(path):
        return lambda level: VipsRows(path, ignore_exif=selection.ignore_exif)
    return None


def _is_file(source: object) -> bool:
    """Returns whether the source is the path of a file, not a URL or "-" (standard input)."""
    return isinstance(source, str | os.PathLike) and as_url(source) is None and os.fspath(source) != STANDARD_INPUT
