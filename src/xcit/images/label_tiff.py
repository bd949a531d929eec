"""Writes label maps of any size as TIFF files that other programs can open, and converts them to polygons."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.images.cell_place import CellPlace
from xcit.images.polygons import MarkedArea
from xcit.writing import whole_file

UNLABELLED = 255
"""The value of pixels without a label, for example where the image file has no data."""

_TILE = 512

_SMALLEST = 512
"""Each overview halves the previous one, until the long side has at most this number of pixels."""

Labels = NDArray[np.uint8]


def write_label_tiff(
    path: Path,
    size: tuple[int, int],
    read: Callable[[int, int], Labels],
    names: Sequence[str],
    colors: NDArray[np.uint8],
    cells: CellPlace,
) -> None:
    """Writes a label map as a tiled, compressed TIFF with a palette and overviews.

    If the image is georeferenced, the file is a GeoTIFF. The nodata value is `UNLABELLED`. The description in the file
    is JSON: the result of `CellPlace.described` and the names of the classes.

    Args:
        path: path of the file. The file is written completely or not at all.
        size: height and width (h, w) of the label map in pixels.
        read: function (start, end) that returns rows start:end of the labels, uint8 (end - start, w).
        names: names of the K classes.
        colors: red, green and blue of each class, uint8 (K, 3).
        cells: position of the label map's pixels, as returned by `CellPlace.of(info, 1)`.

    Raises:
        XCiTError: if the file can't be written, or rasterio is not installed.
    """
    need_packages(f"{path}: writing it", "rasterio")
    import rasterio

    height, width = size
    about = json.dumps(cells.described() | {"classes": list(names)})
    palette = {index: (*map(int, color), 255) for index, color in enumerate(colors)} | {UNLABELLED: (0, 0, 0, 0)}
    how: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
    how |= {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    if cells.to_map is not None:
        how |= {"transform": rasterio.Affine(*cells.to_map)}
        how |= {} if cells.crs is None else {"crs": rasterio.crs.CRS.from_wkt(cells.crs)}
    with whole_file(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio warns if there is no georeference
        try:
            with rasterio.open(part, "w", nodata=UNLABELLED, photometric="palette", **how) as file:
                file.write_colormap(1, palette)
                file.update_tags(TIFFTAG_IMAGEDESCRIPTION=about)
                for start in range(0, height, _TILE):
                    end = min(start + _TILE, height)
                    window = rasterio.windows.Window(0, start, width, end - start)
                    file.write(read(start, end), 1, window=window)
            factors = overview_factors(size)
            if factors:
                how = {"COMPRESS_OVERVIEW": "DEFLATE", "GDAL_TIFF_OVR_BLOCKSIZE": str(_TILE)}
                with rasterio.Env(**how), rasterio.open(part, "r+") as file:
                    file.build_overviews(factors, rasterio.enums.Resampling.nearest)
        except rasterio.errors.RasterioError as error:
            raise XCiTError(f"{path}: can't be written: {error}") from error


def overview_factors(size: tuple[int, int]) -> list[int]:
    """Returns the reduction factors of a map's overviews: 2, 4, 8 and so on, until an overview fits `_SMALLEST`."""
    factors = []
    factor = 2
    while max(size) * 2 > factor * _SMALLEST:
        factors.append(factor)
        factor *= 2
    return factors


def label_areas(labels: Labels, names: Sequence[str], colors: NDArray[np.uint8]) -> Iterator[MarkedArea]:
    """Yields each connected area of equal labels in a label map (h, w), as a polygon along the edges of the pixels.

    Pixels that touch only at a corner are not connected. Pixels with the value `UNLABELLED` are left out.

    Args:
        labels: the label map (h, w).
        names: names of the K classes.
        colors: red, green and blue of each class, uint8 (K, 3).

    Raises:
        XCiTError: if rasterio is not installed.
    """
    need_packages("polygons of a label map", "rasterio")
    from rasterio.features import shapes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio warns if there is no georeference
        for geometry, value in shapes(labels, mask=labels != UNLABELLED, connectivity=4):
            label = int(value)
            color = tuple(int(part) for part in colors[label])
            assert len(color) == 3
            yield MarkedArea(class_name=names[label], polygons=[geometry["coordinates"]], color=color)
