"""Writes areas of an image as polygons in GeoJSON: in map coordinates, or in the form that QuPath and others read.

Rings are in pixels of the model's image, x before y; (0, 0) is the upper left corner of the first pixel. The first ring
of a polygon is its outline, and the others are holes.
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
        class_name: name of its class.
        polygons: its polygons. Most areas have one; an area of several parts has more.
        color: red, green and blue of the class, 0..255.
        measurements: numbers that belong to it, such as a score.
    """

    class_name: str
    polygons: Sequence[Polygon]
    color: tuple[int, int, int]
    measurements: Mapping[str, float] = field(default_factory=dict)


def write_geojson(path: Path, areas: Iterable[MarkedArea], cells: CellPlace) -> int:
    """Writes areas as a GeoJSON FeatureCollection, one after another.

    If the image is georeferenced, the coordinates are those of its map, `crs` names the coordinate system, and
    `properties` has `class` and the measurements. Otherwise, the coordinates are pixels of the file's largest level,
    and `properties` has the form of a QuPath annotation: `objectType`, `classification` with name and colour, and
    `measurements`.

    Args:
        path: path of the file, which is written completely or not at all.
        areas: areas with rings in pixels of the model's image.
        cells: the position of these pixels: `CellPlace.of(info, 1)`.

    Returns:
        The number of areas.

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
    """Returns GeoJSON's name of a coordinate system that is given as WKT, or the WKT itself if it has no name."""
    import rasterio

    code = rasterio.crs.CRS.from_wkt(crs).to_authority()
    return crs if code is None else f"urn:ogc:def:crs:{code[0]}::{code[1]}"


def moved_ring(ring: Ring, transform: Transform) -> list[list[float]]:
    """Transforms the coordinates of a ring and closes it: its last point equals its first."""
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
