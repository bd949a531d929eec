"""Writes maps as TIFF files for other programs, with their position on the ground if it is known."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import missing_package
from xcit.images.cell_place import CellPlace

Maps = np.ndarray[Any, np.dtype[np.float32]]


def write_map_tiff(path: Path, maps: Maps, names: Sequence[str], cells: CellPlace) -> None:
    """Writes maps (M, H, W) as the bands of a float32 TIFF, or of a GeoTIFF if the image is georeferenced.

    Missing cells are NaN; a GeoTIFF declares NaN as its nodata value. The description in the file is JSON: the result
    of `CellPlace.described` and the names of the bands.

    Args:
        path: path of the file to write.
        maps: the maps, float32 (M, H, W).
        names: names of the M bands.
        cells: position of the maps' cells.

    Raises:
        XCiTError: if the file can't be written, or the package for it (tifffile or rasterio) is not installed.
    """
    about = json.dumps(cells.described() | {"bands": list(names)})
    try:
        if cells.to_map is None:
            _write_plain(path, maps, about)
        else:
            _write_georeferenced(path, maps, names, cells, about)
    except ImportError as error:
        raise missing_package(f"{path}: writing it", error.name or "tifffile") from None


def _write_plain(path: Path, maps: Maps, about: str) -> None:
    import tifffile

    tifffile.imwrite(
        path,
        maps,
        photometric="minisblack",
        planarconfig="separate" if len(maps) > 1 else None,
        compression="deflate",
        description=about,
        metadata=None,
    )


def _write_georeferenced(path: Path, maps: Maps, names: Sequence[str], cells: CellPlace, about: str) -> None:
    import rasterio

    assert cells.to_map is not None
    count, height, width = maps.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packages that rasterio uses give warnings
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=count,
                dtype="float32",
                nodata=np.nan,
                crs=None if cells.crs is None else rasterio.crs.CRS.from_wkt(cells.crs),
                transform=rasterio.Affine(*cells.to_map),
                compress="deflate",
                BIGTIFF="IF_SAFER",
            ) as file:
                file.write(maps)
                file.descriptions = tuple(names)
                file.update_tags(TIFFTAG_IMAGEDESCRIPTION=about)
    except rasterio.errors.RasterioError as error:
        raise XCiTError(f"{path}: can't be written: {error}") from error
