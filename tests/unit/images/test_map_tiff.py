"""Tests maps as TIFF, which rasterio and tifffile open."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile

from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.map_tiff import write_map_tiff
from xcit.images.rows import RowsInfo

MAPS = np.random.default_rng(0).random((3, 11, 17), dtype=np.float32)
MAPS[:, 2:4, 5] = np.nan
NAMES = ["mean", "head 0", "head 1"]


def test_on_the_ground(tmp_path: Path) -> None:
    crs = rasterio.crs.CRS.from_epsg(3857).to_wkt()
    info = RowsInfo(name="a", metadata={"transform": (2.0, 0.5, 100.0, 0.25, -2.0, 50.0), "crs": crs})
    cells = CellPlace.of(info, 16)
    write_map_tiff(tmp_path / "a.tif", MAPS, NAMES, cells)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.crs.to_epsg() == 3857 and tuple(file.transform)[:6] == (32, 8, 100, 4, -32, 50)
        assert np.array_equal(file.read(), MAPS, equal_nan=True) and file.descriptions == tuple(NAMES)
        assert np.array_equal(file.read_masks(1) == 0, np.isnan(MAPS[0]))
        about = json.loads(file.tags()["TIFFTAG_IMAGEDESCRIPTION"])
    assert about == cells.described() | {"bands": NAMES}


@pytest.mark.parametrize("count", [1, 3])
def test_in_the_file_alone(tmp_path: Path, count: int) -> None:
    cells = CellPlace.of(RowsInfo(name="a", metadata={"place": (4.0, 0.0, 8.0, 0.0, 4.0, 0.0)}), 16)
    write_map_tiff(tmp_path / "a.tif", MAPS[:count], NAMES[:count], cells)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert np.array_equal(file.asarray().reshape(count, 11, 17), MAPS[:count], equal_nan=True)
        page: Any = file.pages[0]
        about = json.loads(page.description)
    assert about["cell_to_pixel"] == [64, 0, 8, 0, 64, 0] and about["cell_to_map"] is None


def test_mistakes_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = CellPlace(source="a", to_pixels=(1, 0, 0, 0, 1, 0), to_map=(1, 0, 0, 0, 1, 0))
    with pytest.raises(XCiTError, match=r"a\.tif: can't be written"):
        write_map_tiff(tmp_path / "missing" / "a.tif", MAPS, NAMES, cells)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(XCiTError, match=r"writing it needs rasterio: pip install 'xcit\[images\]'"):
        write_map_tiff(tmp_path / "a.tif", MAPS, NAMES, cells)
