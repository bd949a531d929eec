"""Tests JPEG and PNG files that are too large for Pillow (decompression bombs) and that libvips reads by rows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from xcit.errors import XCiTError
from xcit.images.open_rows import open_rows
from xcit.images.rows import ImageRows
from xcit.images.selection import Selection
from xcit.images.vips_rows import VipsRows, is_too_large

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 60, 3), dtype=np.uint8)


def whole(rows: ImageRows, step: int = 17) -> np.ndarray:
    return np.concatenate([rows.read(start, min(start + step, rows.height)) for start in range(0, rows.height, step)])


@pytest.fixture(autouse=True)
def _small_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # Pillow refuses twice this number


def test_pngs_of_8_and_16_bits_grey_colour_and_transparent(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "rgb.png")
    Image.fromarray(PIXELS[:, :, 0]).save(tmp_path / "grey.png")
    wide = PIXELS[:, :, 0].astype(np.uint16) * np.uint16(257) ^ np.uint16(5)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    alpha = np.dstack([PIXELS, np.where(np.arange(60) < 30, 255, 0)[None].repeat(150, 0).astype(np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    over_white = np.where(alpha[:, :, 3:] > 0, PIXELS, 255)
    for name, expected in (
        ("rgb", PIXELS), ("grey", PIXELS[:, :, :1]), ("wide", wide[:, :, None]), ("alpha", over_white),
    ):  # fmt: skip
        with open_rows(tmp_path / f"{name}.png") as rows:
            assert isinstance(rows, VipsRows)
            found = whole(rows)
            assert found.dtype == expected.dtype and np.array_equal(found, expected)
            assert np.array_equal(rows.read(3, 9), expected[3:9])  # decoded from the top again
            assert np.array_equal(rows.read(140, 150), expected[140:])


def test_jpegs_upright(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(PIXELS[:15, :6]).resize((60, 150)))
    exif = Image.Exif()
    for name, orientation in (("upright.jpg", 1), ("turned.jpeg", 6)):
        exif[0x0112] = orientation
        Image.fromarray(smooth).save(tmp_path / name, quality=95, exif=exif)
        with open_rows(tmp_path / name) as rows:
            assert isinstance(rows, VipsRows)
            shown = smooth if orientation == 1 else np.rot90(smooth, -1)
            found = whole(rows)
            assert found.shape == shown.shape and np.abs(found.astype(int) - shown).mean() < 4


def test_only_what_pillow_refuses_goes_to_libvips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert is_too_large(tmp_path / "a.png") and not is_too_large(tmp_path / "missing.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 60)
    assert not is_too_large(tmp_path / "a.png")
    with open_rows(tmp_path / "a.png") as rows:
        assert not isinstance(rows, VipsRows) and np.array_equal(rows.read(0, 150), PIXELS)


def test_what_is_damaged_is_named_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_rows(path) as rows:
        rows.read(0, 10)
        with pytest.raises(XCiTError, match=r"a\.png: truncated or damaged in rows 10 to 149 of 150"):
            rows.read(10, 150)
    path.write_bytes(data)
    with pytest.raises(XCiTError, match="no level 1: the image has only one size"):  # noqa: SIM117
        with open_rows(path, selection=Selection(level=1)):
            pass
    pyvips.Image.new_from_array(PIXELS.astype(np.float32)).write_to_file(str(tmp_path / "b.v"))
    with pytest.raises(XCiTError, match="pixels of type float: convert the image to 8 or 16 bits"):
        VipsRows(tmp_path / "b.v")
    (tmp_path / "c.png").write_bytes(b"nothing")
    with pytest.raises(XCiTError, match=r"c\.png: libvips can't open it"):
        VipsRows(tmp_path / "c.png")
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(XCiTError, match=r"needs pyvips: pip install 'xcit\[images\]'"):  # noqa: SIM117
        with open_rows(path):
            pass
