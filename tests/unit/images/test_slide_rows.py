"""Tests pyramids and slides that tifffile writes, read by tifffile and OpenSlide: levels, micrometres per pixel."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from xcit.errors import XCiTError
from xcit.images.open_rows import open_rows
from xcit.images.overview import box_means
from xcit.images.rows import ImageRows, rows_info
from xcit.images.selection import Selection
from xcit.images.slide_rows import SlideRows

DRAW = np.random.default_rng(0)
LARGE = DRAW.integers(0, 256, (400, 300, 3), dtype=np.uint8)
SMALL = LARGE[::4, ::4]
SPANS = [(0, 400), (0, 1), (399, 400), (63, 65), (100, 399)]


def write_pyramid(path: Path, **first: Any) -> None:
    """Writes a tiled TIFF with two levels and 0.5 micrometres per pixel, which OpenSlide and tifffile can read."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    resolution: dict[str, Any] = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(LARGE, **options, **(resolution | first))
        writer.write(SMALL, subfiletype=1, **options)


def whole(rows: ImageRows) -> np.ndarray:
    return np.concatenate([rows.read(start, min(start + 37, rows.height)) for start in range(0, rows.height, 37)])


def test_two_levels_through_openslide(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.scn")
    with open_rows(tmp_path / "a.scn") as rows:
        assert isinstance(rows, SlideRows) and (rows.height, rows.width, rows.channels) == LARGE.shape
        for start, end in SPANS:
            assert np.array_equal(rows.read(start, end), LARGE[start:end])
        info = rows_info(rows)
    assert info.levels == ((400, 300), (100, 75)) and info.metadata["mpp"] == pytest.approx(0.5)
    with open_rows(tmp_path / "a.scn", selection=Selection(level=1)) as rows:
        assert np.array_equal(whole(rows), SMALL)
        assert rows_info(rows).metadata["place"] == (4, 0, 0, 0, 4, 0)
    with pytest.raises(XCiTError, match=r"a\.scn: no level 2: the file has 2 levels"):
        SlideRows(tmp_path / "a.scn", 2)


def test_columns_that_are_read_in_parts_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcit.images.slide_rows._COLUMNS_AT_ONCE", 70)
    write_pyramid(tmp_path / "a.scn")
    for level, expected in ((0, LARGE), (1, SMALL)):
        rows = SlideRows(tmp_path / "a.scn", level)
        assert np.array_equal(whole(rows), expected)
        rows.close()


@pytest.mark.parametrize("name", ["a.scn", "a.tif"])
def test_micrometres_a_pixel_choose_the_level(tmp_path: Path, name: str) -> None:
    write_pyramid(tmp_path / name)
    halved = np.rint(box_means(LARGE, 2)).astype(np.uint8)
    for mpp, expected, place in ((0.5, LARGE, 1), (0.505, LARGE, 1), (2, SMALL, 4), (1, halved, 2)):
        with open_rows(tmp_path / name, selection=Selection(mpp=mpp)) as rows:
            assert np.array_equal(whole(rows), expected)
            assert rows_info(rows).metadata["place"] == (place, 0, 0, 0, place, 0)
    with (
        pytest.raises(
            XCiTError, match=r"no level gives 0\.7 micrometres per pixel; possible pixel sizes are 0\.5, 2 and whole"
        ),
        open_rows(tmp_path / name, selection=Selection(mpp=0.7)),
    ):
        pass


def test_where_tiffs_say_how_large_a_pixel_is(tmp_path: Path) -> None:
    tile: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
    scanned = "Aperio Image Library v11\r\n300x400|AppMag = 20|MPP = 0.4990|Left = 3"
    tifffile.imwrite(tmp_path / "a.svs", LARGE, description=scanned, metadata=None, **tile)
    axes = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(tmp_path / "b.ome.tif", LARGE, metadata=axes, **tile)
    tifffile.imwrite(tmp_path / "c.tif", LARGE, resolution=(25400, 25400), resolutionunit="INCH", **tile)
    tifffile.imwrite(tmp_path / "d.tif", LARGE, **tile)
    for name, mpp in (("a.svs", 0.499), ("b.ome.tif", 0.25), ("c.tif", 1.0), ("d.tif", None)):
        with open_rows(tmp_path / name) as rows:
            assert rows_info(rows).metadata.get("mpp") == (None if mpp is None else pytest.approx(mpp))
            assert np.array_equal(rows.read(70, 90), LARGE[70:90])
    with (
        pytest.raises(XCiTError, match=r"d\.tif: the file does not say how large its pixels are"),
        open_rows(tmp_path / "d.tif", selection=Selection(mpp=1)),
    ):
        pass


def test_what_is_no_slide_or_damaged_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"nothing")
    with pytest.raises(XCiTError, match=r"a\.mrxs: OpenSlide can't open it"):
        SlideRows(tmp_path / "a.mrxs")
    with pytest.raises(XCiTError, match=r"b\.mrxs: no such file"):
        SlideRows(tmp_path / "b.mrxs")
    path = tmp_path / "c.scn"
    write_pyramid(path, compression="deflate")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[10]  # five tiles per row
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    rows = SlideRows(path)
    assert np.array_equal(rows.read(0, 100), LARGE[:100])
    with pytest.raises(XCiTError, match=r"c\.scn: truncated or damaged in rows 128 to 191 of 400"):
        rows.read(100, 130)
    rows.close()
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(XCiTError, match=r"needs openslide: pip install 'xcit\[images\]'"):
        SlideRows(path)


@pytest.mark.parametrize("subifd", [False, True], ids=["pages", "subifds"])
def test_a_pyramid_that_libvips_writes(tmp_path: Path, subifd: bool) -> None:
    pyvips = pytest.importorskip("pyvips", reason="libvips is not installed")
    image = pyvips.Image.new_from_array(LARGE).copy(xres=2000, yres=2000)  # pixels a millimetre
    options: dict[str, Any] = {"tile": True, "tile_width": 64, "tile_height": 64, "pyramid": True, "bigtiff": True}
    image.tiffsave(str(tmp_path / "a.tif"), compression="deflate", resunit="cm", subifd=subifd, **options)
    for level in (0, 1):
        where = {"subifd": level - 1} if subifd and level else {"page": 0 if subifd else level}
        expected = pyvips.Image.tiffload(str(tmp_path / "a.tif"), **where).numpy()
        with open_rows(tmp_path / "a.tif", selection=Selection(level=level)) as rows:
            assert np.array_equal(whole(rows), expected)
            assert rows_info(rows).metadata["mpp"] == pytest.approx(0.5)
