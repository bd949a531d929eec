"""Zarr arrays and OME-Zarr, read by rows."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from xcit.errors import XCiTError
from xcit.images.find import find_images
from xcit.images.open_rows import open_rows
from xcit.images.rows import rows_info
from xcit.images.selection import Selection
from xcit.images.zarr_rows import ZarrRows

PIXELS: Any = np.random.default_rng(0).integers(0, 60000, (83, 50, 5), dtype=np.uint16)
SPANS = [(0, 83), (0, 1), (82, 83), (15, 17), (31, 70)]


def check(path: Path, expected: np.ndarray, **selection: Any) -> None:
    with open_rows(path, selection=Selection(**selection)) as rows:
        assert isinstance(rows, ZarrRows) or selection
        assert (rows.height, rows.width, rows.channels) == expected.shape
        for start, end in SPANS:
            found = rows.read(start, min(end, rows.height))
            assert found.dtype == expected.dtype and np.array_equal(found, expected[start:end])


def test_arrays_with_and_without_names_of_axes(tmp_path: Path) -> None:
    zarr.save_array(str(tmp_path / "a.zarr"), PIXELS)
    zarr.save_array(str(tmp_path / "b.zarr"), PIXELS[:, :, 0])
    named = zarr.create_array(
        str(tmp_path / "c.zarr"), shape=(1, 5, 83, 50), chunks=(1, 2, 16, 20), dtype="uint16",
        dimension_names=("time", "band", "y", "x"),
    )  # fmt: skip
    named[0] = PIXELS.transpose(2, 0, 1)
    check(tmp_path / "a.zarr", PIXELS)
    check(tmp_path / "b.zarr", PIXELS[:, :, :1])
    check(tmp_path / "c.zarr", PIXELS)
    check(tmp_path / "c.zarr", PIXELS[:, :, [4, 0]], bands=(5, 1))
    assert find_images([tmp_path / "a.zarr"]) == [tmp_path / "a.zarr"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_of_ome_zarr(tmp_path: Path, version: str) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    levels = [PIXELS, PIXELS[::2, ::2]]
    for index, level in enumerate(levels):
        group.create_array(str(index), data=level.transpose(2, 0, 1)[None], chunks=(1, 1, 16, 16))
    axes = [{"name": name} for name in "tcyx"]
    image: Any = {"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}], "version": version}
    group.attrs.update({"multiscales": [image]} if version == "0.4" else {"ome": {"multiscales": [image]}})
    check(tmp_path / "a.zarr", PIXELS)
    with open_rows(tmp_path / "a.zarr", selection=Selection(level=1)) as rows:
        assert np.array_equal(rows.read(0, 42), levels[1])
        assert rows_info(rows).levels == ((83, 50), (42, 25))
    with pytest.raises(XCiTError, match="no level 2: the file has 2 levels"):
        ZarrRows(tmp_path / "a.zarr", 2)


def test_what_is_no_image_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.save_array(str(tmp_path / "flat.zarr"), PIXELS.ravel())
    zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    signed = zarr.create_array(str(tmp_path / "signed.zarr"), shape=(30, 20), chunks=(16, 16), dtype="int16")
    signed[:] = 3
    for name, message in {
        "flat.zarr": "an image must have shape",
        "group.zarr": "a Zarr group that is not an OME-Zarr image",
        "signed.zarr": "pixels of type int16 have no standard range",
        "missing.zarr": "zarr can't open it",
    }.items():
        with pytest.raises(XCiTError, match=message) as caught:
            ZarrRows(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    chunk = next(path for path in (tmp_path / "signed.zarr").rglob("c/1/0"))
    chunk.write_bytes(b"nothing")
    rows = ZarrRows(tmp_path / "signed.zarr", ranged=True)
    assert (rows.read(0, 16) == 3).all()
    with pytest.raises(XCiTError, match=r"signed\.zarr: damaged in rows 16 to 29"):
        rows.read(10, 20)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(XCiTError, match=r"Zarr needs zarr: pip install 'xcit\[images\]'"):
        ZarrRows(tmp_path / "flat.zarr")
