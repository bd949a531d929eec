"""Tests maps of tokens on disk: they contain all rows that were written, and the maps of a killed run are resumed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from xcit.errors import XCiTError
from xcit.streaming import NpyMap, ZarrMap

TOKENS = torch.randn(23, 7, 5, generator=torch.Generator().manual_seed(0))


def write(target: NpyMap | ZarrMap, rows: int, start: int = 0, end: int = 23) -> None:
    for first in range(start, end, rows):
        target.write(first, TOKENS[first : min(first + rows, end)])


@pytest.mark.parametrize("rows", [1, 3, 8, 23])
def test_zarr_has_what_was_written_in_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("xcit.streaming.outputs._CHUNK_BYTES", 4 * 4 * 7 * 5)
    target = ZarrMap(tmp_path / "a.zarr")
    target.open((23, 7), 5, goes_on=False)
    write(target, rows)
    assert not (tmp_path / "a.zarr").exists()
    target.finish({"source": "x"})
    array = zarr.open_array(str(tmp_path / "a.zarr"), mode="r")
    assert array.chunks == (4, 7, 5) and array.dtype == np.float32 and dict(array.attrs) == {"source": "x"}
    assert np.array_equal(array[:], TOKENS.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("kind", [NpyMap, ZarrMap])
def test_a_map_that_is_there_is_gone_on_with(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "map"
    target = kind(path)
    assert not target.can_go_on()
    target.open((23, 7), 5, goes_on=False)
    write(target, 4)
    again = kind(path)
    assert again.can_go_on()
    again.open((23, 7), 5, goes_on=True)
    if isinstance(again, ZarrMap):
        again.finish({})
        assert np.array_equal(zarr.open_array(str(path), mode="r")[:], TOKENS.numpy())
    else:
        again.finish()
        assert np.array_equal(np.load(path), TOKENS.numpy())
    third = kind(path)
    third.open((23, 7), 5, goes_on=False)
    third.discard()
    assert [one.name for one in tmp_path.iterdir()] == ["map"]


def test_what_is_in_the_way_or_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zarr").write_text("letters")
    with pytest.raises(XCiTError, match=r"a\.zarr: exists and is not a Zarr array"):
        ZarrMap(tmp_path / "a.zarr")
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(XCiTError, match=r"Zarr needs zarr: pip install 'xcit\[images\]'"):
        ZarrMap(tmp_path / "b.zarr")
