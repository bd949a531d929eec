"""Chooses the reader of rows for any kind of source."""

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
    """Opens an image for reading by rows, and closes it.

    These are read by rows and in their own type: files of `TIFF_SUFFIXES`, by rasterio if they are georeferenced or
    have a nodata value, else by tifffile; files of `GEO_SUFFIXES`, by rasterio; files of `SLIDE_SUFFIXES`, by
    OpenSlide; .npy files; .zarr folders; and files of `LARGE_SUFFIXES` with more pixels than Pillow would decode, by
    libvips. All other files are decoded as a whole by `read_image`, within Pillow's limit on their size.

    Args:
        source: a path, a PIL image, an array (H, W) or (H, W, C), a tensor (H, W) or (C, H, W), or an `ImageRows`.
        name: the name of an image that is not a file, for error messages.
        selection: which part of the image to read.

    Raises:
        XCiTError: "<path>: <reason>" if it can't be read.
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
            raise XCiTError(f"{rows_info(rows).name}: there is no level {selection.level}: it has only one size")
        if selection.bands and not isinstance(rows, GeoRows):  # `GeoRows` reads only the selected bands
            rows = BandRows(rows, selection.bands)
        if selection.value_range is not None:
            rows = RangedRows(rows, selection.value_range)
        if selection.mask is not None:
            rows = MaskedRows(rows, stack.enter_context(open_rows(selection.mask, name="the mask")))
        if selection.region is not None:
            rows = RegionRows(rows, selection.region)
        yield rows


def _opened(path: Path, selection: Selection, stack: ExitStack) -> ImageRows:
    """Opens a file at the selected level; the stack closes it."""
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
    """Returns a function that opens a level of a file, or None if the file is decoded as a whole."""
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
    """Whether the source is a path, and neither a URL nor standard input."""
    return isinstance(source, str | os.PathLike) and as_url(source) is None and os.fspath(source) != STANDARD_INPUT
