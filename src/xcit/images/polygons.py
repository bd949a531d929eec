"""Areas of an image as polygons in GeoJSON: in map coordinates, or as QuPath and other viewers of slides read them.

Rings are in pixels of the image that a model saw, x before y: (0, 0) is the upper left corner of the first pixel. Of a
polygon the first ring is its outline, the others are holes.
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
        class_name: its class.
        polygons: what it consists of, mostly one; none are dropped, for an area may have holes and parts.
        color: red, green and blue of the class, 0..255.
        measurements: numbers beside it, such as a score.
    """

    class_name: str
    polygons: Sequence[Polygon]
    color: tuple[int, int, int]
    measurements: Mapping[str, float] = field(default_factory=dict)


def write_geojson(path: Path, areas: Iterable[MarkedArea], cells: CellPlace) -> int:
    """Writes areas as a GeoJSON FeatureCollection, one after another.

    On a map they are in its coordinates, the system of which is named in `crs`, and `properties` has `class` and the
    measurements. In a file alone they are in pixels of its largest level, and `properties` is what QuPath takes for an
    annotation: `objectType`, `classification` with name and colour, `measurements`.

    Args:
        path: of the file, which is written whole or not at all.
        areas: with rings in pixels of the image that the model saw.
        cells: where these pixels lie: `CellPlace.of(info, 1)`.

    Returns:
        How many there are.

    Raises:
        XCiTError: if it can't be written.
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
    """A system of coordinates, given as WKT, by the name that GeoJSON knows it by; as WKT if it has none."""
    import rasterio

    code = rasterio.crs.CRS.from_wkt(crs).to_authority()
    return crs if code is None else f"urn:ogc:def:crs:{code[0]}::{code[1]}"


def moved_ring(ring: Ring, transform: Transform) -> list[list[float]]:
    """A ring in the coordinates that a transform leads to, closed: it ends where it began."""
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
