"""Tests readers by rows: for any requested rows, arrays, .npy and TIFF files return the pixels that were written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.open_rows import open_rows
from xcit.images.overview import overview
from xcit.images.rows import ImageRows, RowsInfo, rows_info
from xcit.images.selection import Selection

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (83, 50, 3), dtype=np.uint8)
SPANS = [(0, 83), (0, 1), (82, 83), (15, 17), (31, 70), (5, 6), (16, 32)]


def check(rows: ImageRows, pixels: np.ndarray) -> None:
    assert (rows.height, rows.width, rows.channels) == pixels.shape
    for start, end in SPANS:
        found = rows.read(start, end)
        assert found.dtype == pixels.dtype and np.array_equal(found, pixels[start:end])


def test_arrays_and_tensors() -> None:
    for source in (PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1)):
        with open_rows(source) as rows:
            check(rows, PIXELS)
    with open_rows(PIXELS[:, :, 0]) as rows:
        check(rows, PIXELS[:, :, :1])
    with open_rows(torch.rand(3, 83, 50).bfloat16()) as rows:
        assert rows.read(0, 2).dtype == np.float32


def test_a_source_of_your_own_is_taken_as_it_is() -> None:
    class Own:
        height, width, channels = 83, 50, 3

        def read(self, start: int, end: int) -> np.ndarray:
            return PIXELS[start:end]

    with open_rows(Own()) as rows:
        check(rows, PIXELS)
        assert rows_info(rows) == RowsInfo()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
def test_npy_files_are_read_by_rows(tmp_path: Path, dtype: type) -> None:
    pixels: np.ndarray
    for pixels in (PIXELS.astype(dtype), PIXELS[:, :, 0].astype(dtype)):
        np.save(tmp_path / "a.npy", pixels)
        with open_rows(tmp_path / "a.npy") as rows:
            check(rows, pixels.reshape(83, 50, -1))


TIFFS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big": {"bigtiff": True, "byteorder": ">"},
    "strips": {"rowsperstrip": 16, "compression": "deflate"},
    "one-strip": {"rowsperstrip": 83, "compression": "lzw", "predictor": True},
    "tiles": {"tile": (16, 32), "compression": "zstd"},
    "tiles-plain": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate", "tile": (16, 16), "compression": "deflate"},
    "plane-strips": {"planarconfig": "separate", "rowsperstrip": 20},
}


@pytest.mark.parametrize("name", TIFFS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_files_are_read_by_rows(tmp_path: Path, name: str, dtype: type) -> None:
    pixels: np.ndarray = (PIXELS.astype(np.float64) * (200 if dtype is np.uint16 else 1)).astype(dtype)
    options = dict(TIFFS[name])
    written = pixels.transpose(2, 0, 1) if options.get("planarconfig") else pixels
    tifffile.imwrite(tmp_path / "a.tif", written, photometric="rgb", **options)
    with open_rows(tmp_path / "a.tif") as rows:
        check(rows, pixels)
        assert rows_info(rows).name == str(tmp_path / "a.tif")


def test_grey_tiffs_and_those_whose_white_is_zero(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", grey, tile=(16, 16))
    tifffile.imwrite(tmp_path / "b.tif", 255 - grey, photometric="miniswhite", tile=(16, 16))
    for name in ("a.tif", "b.tif"):
        with open_rows(tmp_path / name) as rows:
            check(rows, grey[:, :, None])


def test_levels_of_a_pyramid(tmp_path: Path) -> None:
    half = PIXELS[::2, ::2]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PIXELS, tile=(16, 16), photometric="rgb", subifds=1)
        writer.write(half, tile=(16, 16), photometric="rgb", subfiletype=1)
    with open_rows(tmp_path / "a.tif") as rows:
        check(rows, PIXELS)
        assert rows_info(rows).levels == ((83, 50), (42, 25))
    with open_rows(tmp_path / "a.tif", selection=Selection(level=1)) as rows:
        assert np.array_equal(rows.read(0, 42), half)
    with (
        pytest.raises(XCiTError, match="no level 2: the file has 2 levels"),
        open_rows(tmp_path / "a.tif", selection=Selection(level=2)),
    ):
        pass


@pytest.mark.parametrize("name", ["plain", "strips", "tiles"])
def test_a_truncated_tiff_names_the_row_where_it_ends(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:  # with the directory at the start of the file
        writer.write(PIXELS, photometric="rgb", **TIFFS[name])
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset = page.dataoffsets[0] + 45 * 150 if name == "plain" else page.dataoffsets[-1]
    path.write_bytes(path.read_bytes()[: offset + 5])
    first = {"plain": 45, "strips": 80, "tiles": 80}[name]
    with open_rows(path) as rows:
        rows.read(0, 40)
        with pytest.raises(XCiTError, match=rf"a\.tif: truncated: the file ends in row {first} of 83"):
            rows.read(40, 83)


def test_a_tile_that_can_not_be_decoded_is_named_by_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", **TIFFS["tiles"])
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset = page.dataoffsets[5]
    data = bytearray(path.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    with open_rows(path) as rows:
        rows.read(0, 32)
        with pytest.raises(XCiTError, match=r"rows 32 to 47 can't be decoded"):
            rows.read(32, 33)


def test_what_is_no_image_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0 nothing")
    (tmp_path / "a.npy").write_bytes(b"nothing")
    np.save(tmp_path / "signed.npy", PIXELS.astype(np.int16))
    np.save(tmp_path / "flat.npy", PIXELS.ravel())
    np.save(tmp_path / "short.npy", PIXELS)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[: 128 + 10 * 150 + 3])
    palette = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", PIXELS[:, :, 0], photometric="palette", colormap=palette)
    for name, message in {
        "a.tif": "a damaged or unsupported TIFF",
        "a.npy": "not a .npy file",
        "signed.npy": "pixels of type int16",
        "flat.npy": "an image must have shape",
        "palette.tif": "a palette",
        "missing.tif": "no such file",
        "missing.npy": "no such file",
        "missing.png": "no such file",
    }.items():
        with pytest.raises(XCiTError, match=message) as caught, open_rows(tmp_path / name):
            pass
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    with open_rows(tmp_path / "short.npy") as rows, pytest.raises(XCiTError, match="the file ends in row 10 of 83"):
        rows.read(0, 20)
    with pytest.raises(XCiTError, match="the image: shape"):
        ArrayRows(np.zeros((2, 3, 4, 5), np.uint8))


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_an_overview_has_the_means_of_squares(factor: int) -> None:
    picture = overview(ArrayRows(PIXELS), factor)
    assert picture.shape == (-(-83 // factor), -(-50 // factor), 3) and picture.dtype == np.uint8
    row, column = picture.shape[0] - 1, picture.shape[1] - 1
    square = PIXELS[row * factor :, column * factor :].astype(float)
    assert np.abs(picture[row, column] - square.mean(axis=(0, 1))).max() <= 0.51
    for other in (PIXELS.astype(np.uint16) * 257, PIXELS.astype(np.float32) / 255):
        assert np.abs(overview(ArrayRows(other), factor).astype(int) - picture).max() <= 1
    assert overview(ArrayRows(PIXELS[:, :, 0]), factor).shape == picture.shape
