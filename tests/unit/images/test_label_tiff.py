"""Tests details of label maps as TIFF: overviews, tiles, outlines of areas, and errors."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio

from xcit.draw.labels import palette
from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.label_tiff import label_areas, overview_factors, write_label_tiff

CELLS = CellPlace(source="a", to_pixels=(4, 0, 8, 0, 4, 0))


def test_overviews_end_where_one_can_be_looked_at() -> None:
    assert overview_factors((512, 512)) == [] and overview_factors((300, 513)) == [2]
    assert overview_factors((16384, 2000)) == [2, 4, 8, 16, 32]


def test_rows_are_asked_for_a_tile_at_a_time(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (1100, 700), dtype=np.uint8)
    asked: list[tuple[int, int]] = []

    def read(start: int, end: int) -> np.ndarray:
        asked.append((start, end))
        return labels[start:end]

    write_label_tiff(tmp_path / "a.tif", labels.shape, read, ["x", "y", "z"], palette(3), CELLS)
    assert asked == [(0, 512), (512, 1024), (1024, 1100)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasterio warns about missing coordinates
        with rasterio.open(tmp_path / "a.tif") as file:
            assert np.array_equal(file.read(1), labels) and file.overviews(1) == [2, 4]
            assert '"cell_to_pixel": [4, 0, 8, 0, 4, 0]' in file.tags()["TIFFTAG_IMAGEDESCRIPTION"]


def test_areas_that_touch_at_a_corner_are_two_and_the_unlabelled_is_none() -> None:
    labels = np.array([[0, 1, 255], [1, 0, 255]], np.uint8)
    areas = list(label_areas(labels, ["x", "y"], palette(2)))
    assert sorted(area.class_name for area in areas) == ["x", "x", "y", "y"]
    assert areas[0].color == tuple(palette(2)[["x", "y"].index(areas[0].class_name)])


def test_mistakes_are_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((4, 4), np.uint8)
    with pytest.raises(XCiTError, match=r"a\.tif: can't be written"):
        write_label_tiff(tmp_path / "no" / "a.tif", (4, 4), lambda a, b: labels[a:b], ["x"], palette(1), CELLS)
    monkeypatch.setattr("xcit.extras.find_spec", lambda name: None)
    with pytest.raises(XCiTError, match=r"needs rasterio: pip install 'xcit\[images\]'"):
        write_label_tiff(tmp_path / "a.tif", (4, 4), lambda a, b: labels[a:b], ["x"], palette(1), CELLS)
