"""Writes areas of an image as polygons to a GeoJSON file, in map coordinates or as annotations for QuPath.

A polygon is a list of rings. The first ring is the outline, and the other rings are holes. A ring is a list of points
(x, y) in pixels of the image that the model receives; (0, 0) is the upper left corner of the first pixel.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from xcit.images.cell_place import CellPlace
from xcit.images.transforms import Transform
from xcit.writing import whole_file

Ring = Sequence[tuple[float, float]]
Polygon = Sequence[Ring]


@dataclass(frozen=True, kw_only=True)
class MarkedArea:
    """An area of an image that belongs to a class.

    Attributes:
        class_name: name of the class.
        polygons: the polygons of the area, one for each connected part.
        color: red, green and blue of the class, 0..255.
        measurements: numbers that describe the area, such as a score, by name.
    """

    class_name: str
    polygons: Sequence[Polygon]
    color: tuple[int, int, int]
    measurements: Mapping[str, float] = field(default_factory=dict)


def write_geojson(path: Path, areas: Iterable[MarkedArea], cells: CellPlace) -> int:
    """Writes areas to a GeoJSON file as a FeatureCollection. `areas` may be a generator.

    If the image is georeferenced, the coordinates are map coordinates. Then `crs` contains the name of the coordinate
    system if it is known, and `properties` contains `class` and the measurements.

    If the image is not georeferenced, the coordinates are pixels of the file's largest level. Then `properties` has the
    form of a QuPath annotation: `objectType`, `classification` (name and colour) and `measurements`.

    Args:
        path: path of the file. The file is written completely or not at all.
        areas: the areas. Their rings are in pixels of the image that the model receives.
        cells: position of these pixels, as returned by `CellPlace.of(info, 1)`.

    Returns:
        The number of areas that were written.

    Raises:
        XCiTError: if the file can't be written.
    """
    count = 0
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection",')
        if cells.to_map is not None and cells.crs is not None:
            file.write(f'\n"crs": {json.dumps({"type": "name", "properties": {"name": crs_name(cells.crs)}})},')
        file.write('\n"features": [')
        for area in areas:
            file.write(f"{',' if count else ''}\n{json.dumps(_feature(area, cells))}")
            count += 1
        file.write("\n]}\n")
    return count


def crs_name(crs: str) -> str:
    """Returns the GeoJSON name of a coordinate system (WKT), or the WKT itself if the system has no standard code."""
    import rasterio

    code = rasterio.crs.CRS.from_wkt(crs).to_authority()
    return crs if code is None else f"urn:ogc:def:crs:{code[0]}::{code[1]}"


def moved_ring(ring: Ring, transform: Transform) -> list[list[float]]:
    """Transforms the points of a ring and closes the ring, so that its last point equals its first point."""
    points: NDArray[np.float64] = np.asarray(ring, np.float64).reshape(-1, 2)
    a, b, c, d, e, f = transform
    moved = np.stack([points @ (a, b) + c, points @ (d, e) + f], axis=1).tolist()
    return moved if moved[0] == moved[-1] else [*moved, moved[0]]


def _feature(area: MarkedArea, cells: CellPlace) -> dict[str, Any]:
    transform = cells.to_pixels if cells.to_map is None else cells.to_map
    polygons = [[moved_ring(ring, transform) for ring in polygon] for polygon in area.polygons]
    is_one = len(polygons) == 1
    geometry = {"type": "Polygon" if is_one else "MultiPolygon", "coordinates": polygons[0] if is_one else polygons}
    measurements = dict(area.measurements)
    if cells.to_map is not None:
        return {"type": "Feature", "geometry": geometry, "properties": {"class": area.class_name, **measurements}}
    classification = {"name": area.class_name, "color": list(area.color)}
    properties = {"objectType": "annotation", "classification": classification, "measurements": measurements}
    return {"type": "Feature", "id": str(uuid4()), "geometry": geometry, "properties": properties}
