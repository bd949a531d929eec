"""Tests areas as GeoJSON: in map coordinates, and in the form that QuPath reads."""

import json
from pathlib import Path

import pytest

from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.polygons import MarkedArea, crs_name, write_geojson
from xcit.images.rows import RowsInfo

SQUARE = [(0, 0), (4, 0), (4, 4), (0, 4)]
HOLE = [(1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]
AREA = MarkedArea(class_name="sea", polygons=[[SQUARE, HOLE]], color=(1, 2, 3), measurements={"score": 0.5})
PARTS = MarkedArea(class_name="land", polygons=[[SQUARE], [HOLE]], color=(4, 5, 6))


def test_on_a_map(tmp_path: Path) -> None:
    import rasterio

    crs = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    cells = CellPlace.of(RowsInfo(metadata={"transform": (10.0, 0.0, 100.0, 0.0, -10.0, 900.0), "crs": crs}), 1)
    assert write_geojson(tmp_path / "a.geojson", [AREA, PARTS], cells) == 2
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    one, two = content["features"]
    assert one["properties"] == {"class": "sea", "score": 0.5} and one["geometry"]["type"] == "Polygon"
    assert one["geometry"]["coordinates"][0] == [[100, 900], [140, 900], [140, 860], [100, 860], [100, 900]]
    assert len(one["geometry"]["coordinates"][1]) == 5  # it was closed already
    assert two["geometry"]["type"] == "MultiPolygon" and len(two["geometry"]["coordinates"]) == 2


def test_a_system_without_a_number_is_given_as_it_is() -> None:
    import rasterio

    wkt = rasterio.crs.CRS.from_proj4("+proj=aeqd +lat_0=12 +lon_0=34 +datum=WGS84").to_wkt()
    assert crs_name(wkt) == wkt


def test_in_a_slide(tmp_path: Path) -> None:
    cells = CellPlace.of(RowsInfo(metadata={"place": (4.0, 0.0, 8.0, 0.0, 4.0, 16.0)}), 1)
    write_geojson(tmp_path / "a.geojson", [AREA], cells)
    content = json.loads((tmp_path / "a.geojson").read_text())
    (one,) = content["features"]
    assert "crs" not in content and one["id"]
    assert one["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "sea", "color": [1, 2, 3]},
        "measurements": {"score": 0.5},
    }
    assert one["geometry"]["coordinates"][0][2] == [24, 32]


def test_none_at_all_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    cells = CellPlace(source="a", to_pixels=(1, 0, 0, 0, 1, 0))
    assert write_geojson(tmp_path / "a.geojson", [], cells) == 0
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    with pytest.raises(XCiTError, match=r"a\.geojson: can't be written"):
        write_geojson(tmp_path / "missing" / "a.geojson", [AREA], cells)
