"""Tests files that rasterio wrote and that are read by rows: pixels, bands, levels, nodata, and map coordinates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.enums import ColorInterp, Resampling

from xcit.errors import XCiTError
from xcit.images.geo_rows import GeoRows
from xcit.images.open_rows import open_rows
from xcit.images.rows import mask_reader, rows_info
from xcit.images.selection import Selection

DRAW = np.random.default_rng(0)
HEIGHT, WIDTH = 83, 50
SPANS = [(0, 83), (0, 1), (82, 83), (15, 17), (31, 70), (5, 6), (16, 32)]
TRANSFORM = rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)


def pixels_of(dtype: str, bands: int = 4) -> np.ndarray:
    return DRAW.integers(0, 200, (HEIGHT, WIDTH, bands)).astype(dtype)


def write(path: Path, pixels: np.ndarray, **options: Any) -> None:
    height, width, bands = pixels.shape
    given: dict[str, Any] = {"driver": "GTiff", "crs": "EPSG:32632", "transform": TRANSFORM} | options
    with rasterio.open(path, "w", height=height, width=width, count=bands, dtype=pixels.dtype, **given) as file:
        file.write(pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"}, {"interleave": "band"}],
    ids=["strips", "tiles", "planes"],
)
def test_pixels_are_read_right_whatever_rows_are_asked_for(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    pixels = pixels_of(dtype)
    write(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    with open_rows(tmp_path / "a.tif") as rows:
        assert isinstance(rows, GeoRows) and (rows.height, rows.width, rows.channels) == pixels.shape
        for start, end in SPANS:
            found = rows.read(start, end)
            assert found.dtype == pixels.dtype and np.array_equal(found, pixels[start:end])
        metadata = rows_info(rows).metadata
    assert metadata["transform"] == tuple(TRANSFORM)[:6]
    assert rasterio.crs.CRS.from_wkt(metadata["crs"]).to_epsg() == 32632


def test_bands_and_a_range_of_values(tmp_path: Path) -> None:
    pixels = pixels_of("int16") - 20
    write(tmp_path / "a.tif", pixels)
    with (
        pytest.raises(XCiTError, match="of type int16 have no standard range: give a range"),
        open_rows(tmp_path / "a.tif"),
    ):
        pass
    chosen = Selection(bands=(3, 2, 1), value_range=(0, 100))
    with open_rows(tmp_path / "a.tif", selection=chosen) as rows:
        assert rows.channels == 3
        found = rows.read(10, 70)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(pixels[10:70, :, 2::-1] / 100, 0, 1), atol=1e-6)
    with pytest.raises(XCiTError, match="no band 5: the file has 4 bands"):
        GeoRows(tmp_path / "a.tif", bands=(5,))


@pytest.mark.parametrize("bands", [3, 4])
def test_bands_that_are_named_blue_green_red_are_read_as_red_green_blue(tmp_path: Path, bands: int) -> None:
    pixels = pixels_of("uint16", bands)
    write(tmp_path / "a.tif", pixels, photometric="minisblack")
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        names = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.alpha)
        file.colorinterp = names[:bands]
    with open_rows(tmp_path / "a.tif") as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels[:, :, 2::-1])
    with open_rows(tmp_path / "a.tif", selection=Selection(bands=(1, 2, 3))) as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels[:, :, :3])


def test_a_cloud_optimized_file_that_gdal_writes(tmp_path: Path) -> None:
    """Reads the overviews, blocks and nodata of a file from GDAL's COG driver."""
    pixels = DRAW.integers(1, 200, (700, 600, 3)).astype(np.uint8)
    pixels[:100] = 0
    write(tmp_path / "a.tif", pixels, driver="COG", blocksize=128, compress="deflate", nodata=0)
    for level, by in ((0, 1), (1, 2)):
        with rasterio.open(tmp_path / "a.tif", **({"overview_level": level - 1} if level else {})) as file:
            expected, bounds = file.read().transpose(1, 2, 0), file.bounds
        with open_rows(tmp_path / "a.tif", selection=Selection(level=level)) as rows:
            assert (rows.height, rows.width) == (700 // by, 600 // by)
            assert np.array_equal(rows.read(0, rows.height), expected)
            read_mask, metadata = mask_reader(rows), rows_info(rows).metadata
            assert read_mask is not None and not read_mask(0, 90 // by).any() and read_mask(100 // by, 200 // by).all()
        placed = rasterio.Affine(*metadata["transform"])
        assert rasterio.transform.array_bounds(*expected.shape[:2], placed) == pytest.approx(tuple(bounds))


def test_two_levels_of_a_pyramid(tmp_path: Path) -> None:
    pixels = pixels_of("uint16")
    write(tmp_path / "a.tif", pixels, tiled=True, blockxsize=16, blockysize=16)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
    with rasterio.open(tmp_path / "a.tif", overview_level=0) as file:
        half, bounds = file.read(), file.bounds
    with open_rows(tmp_path / "a.tif") as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels)
        assert rows_info(rows).levels == ((83, 50), (42, 25), (21, 13))
    with open_rows(tmp_path / "a.tif", selection=Selection(level=1)) as rows:
        assert np.array_equal(rows.read(0, 42), half.transpose(1, 2, 0))
        info = rows_info(rows)
    assert info.level == 1 and info.metadata["place"] == (2, 0, 0, 0, 83 / 42, 0)
    corners = rasterio.transform.array_bounds(42, 25, rasterio.Affine(*info.metadata["transform"]))
    assert corners == pytest.approx(tuple(bounds))
    with pytest.raises(XCiTError, match="no level 3: the file has 3 levels"):
        GeoRows(tmp_path / "a.tif", 3)


def test_a_region_is_cut_with_its_place_on_the_map(tmp_path: Path) -> None:
    pixels = pixels_of("uint8", 3)
    write(tmp_path / "a.tif", pixels, nodata=0)
    with open_rows(tmp_path / "a.tif", selection=Selection(region=(7, 20, 30, 40))) as rows:
        assert (rows.height, rows.width) == (40, 30)
        assert np.array_equal(rows.read(3, 9), pixels[23:29, 7:37])
        metadata, read_mask = rows_info(rows).metadata, mask_reader(rows)
        assert read_mask is not None and np.array_equal(read_mask(3, 9), (pixels[23:29, 7:37] != 0).any(axis=2))
    assert metadata["transform"] == (10, 0, 500_070, 0, -10, 5_299_800) and metadata["place"] == (1, 0, 7, 0, 1, 20)
    with (
        pytest.raises(XCiTError, match="the region 30,0,30,10 extends beyond the image of 50 x 83 pixels"),
        open_rows(tmp_path / "a.tif", selection=Selection(region=(30, 0, 30, 10))),
    ):
        pass


def mask_of(path: Path, **selection: Any) -> np.ndarray:
    with open_rows(path, selection=Selection(**selection)) as rows:
        read_mask = mask_reader(rows)
        assert read_mask is not None
        whole = np.concatenate([read_mask(0, 17), read_mask(17, HEIGHT)])
        assert np.array_equal(read_mask(30, 31), whole[30:31])
        return whole


def test_what_has_no_data_is_left_out(tmp_path: Path) -> None:
    pixels = pixels_of("uint8", 3) + 1
    pixels[10:30, 5:20] = 0
    pixels[50, 30] = (0, 7, 0)  # a colour
    write(tmp_path / "a.tif", pixels, nodata=0)
    expected = np.ones((HEIGHT, WIDTH), np.bool_)
    expected[10:30, 5:20] = False
    assert np.array_equal(mask_of(tmp_path / "a.tif"), expected)

    heights = pixels.astype(np.float32)
    heights[40, :, 1] = -9999  # one band is enough
    heights[60, 3, 0] = np.nan
    write(tmp_path / "b.tif", heights, nodata=-9999)
    expected = np.ones((HEIGHT, WIDTH), np.bool_)
    expected[40] = expected[60, 3] = False
    assert np.array_equal(mask_of(tmp_path / "b.tif"), expected)

    write(tmp_path / "c.tif", heights, nodata=np.nan)
    expected[40] = True
    assert np.array_equal(mask_of(tmp_path / "c.tif"), expected)


def test_a_value_of_no_data_counts_without_a_place_on_the_map(tmp_path: Path) -> None:
    pixels = pixels_of("uint8", 1) + 1
    pixels[10:30, 5:20] = 0
    tifffile.imwrite(tmp_path / "a.tif", pixels[:, :, 0], extratags=[(42113, "s", 0, "0", True)])
    assert np.array_equal(mask_of(tmp_path / "a.tif"), pixels[:, :, 0] != 0)


def test_transparency_is_no_channel_but_a_mask(tmp_path: Path) -> None:
    pixels = pixels_of("uint8", 4)
    pixels[:, :, 3] = 255
    pixels[20:40, :, 3] = 0
    path = tmp_path / "a.tif"
    write(path, pixels, photometric="rgb", alpha="yes")
    with rasterio.open(path) as file:
        assert file.colorinterp[3] is ColorInterp.alpha
    with open_rows(path) as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels[:, :, :3])
    assert np.array_equal(mask_of(path), pixels[:, :, 3] > 0)
    with open_rows(path, selection=Selection(bands=(4, 1))) as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels[:, :, [3, 0]]) and mask_reader(rows) is None


def test_a_mask_of_a_persons_own_is_stretched_and_adds_to_what_has_no_data(tmp_path: Path) -> None:
    pixels = pixels_of("uint8", 3) + 1
    pixels[:10] = 0
    write(tmp_path / "a.tif", pixels, nodata=0)
    coarse = np.zeros((9, 5), np.uint8)
    coarse[:5, 2:] = 255
    np.save(tmp_path / "mask.npy", coarse)
    rows, columns = ((2 * np.arange(HEIGHT) + 1) * 9 // (2 * HEIGHT), (2 * np.arange(WIDTH) + 1) * 5 // (2 * WIDTH))
    expected = coarse[rows][:, columns] > 0
    expected[:10] = False
    for mask in (tmp_path / "mask.npy", coarse, coarse.astype(np.bool_)):
        assert np.array_equal(mask_of(tmp_path / "a.tif", mask=mask), expected)


def test_a_truncated_or_damaged_file_is_named_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, pixels_of("uint8", 3), tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    whole = path.read_bytes()
    import tifffile

    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    assert list(offsets) == sorted(offsets)
    path.write_bytes(whole[: offsets[12] + 10])  # rows of tiles are 4 tiles wide
    with open_rows(path) as rows:
        rows.read(0, 48)
        with pytest.raises(XCiTError, match=r"a\.tif: truncated or damaged in rows 48 to 63 of 83"):
            rows.read(48, 49)
        rows.read(0, 48)
    damaged = bytearray(whole)
    damaged[offsets[5] : offsets[5] + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    with open_rows(path) as rows, pytest.raises(XCiTError, match=r"damaged in rows 16 to 31 of 83 \(.*TIFF"):
        rows.read(0, 83)
    (tmp_path / "b.vrt").write_text("<nothing>")
    with pytest.raises(XCiTError, match=r"b\.vrt: rasterio can't open it"):
        GeoRows(tmp_path / "b.vrt")


def test_without_rasterio_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tif", pixels_of("uint8"))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    with pytest.raises(XCiTError, match=r"needs rasterio: pip install 'xcit\[images\]'"), open_rows(tmp_path / "a.tif"):
        pass


def test_a_tag_that_tifffile_cannot_parse_is_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = pixels_of("float32", 1)
    nodata = (42113, "s", 0, "-3.4e+39", True)  # GDAL's tag, beyond float32
    tifffile.imwrite(tmp_path / "a.tif", pixels[:, :, 0], extratags=[nodata])
    with open_rows(tmp_path / "a.tif") as rows:
        assert np.array_equal(rows.read(0, HEIGHT), pixels)
    assert not caplog.records
