"""Tests selections of an image (region, bands, level, mask) on arrays, through every class of row readers."""

from typing import Any

import numpy as np
import pytest

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.open_rows import open_rows
from xcit.images.row_views import MaskedRows, RegionRows, ShrunkRows
from xcit.images.rows import RowsInfo, mask_reader, rows_info
from xcit.images.selection import Selection, level_of
from xcit.images.transforms import IDENTITY, enlarged, level_place, moved

PIXELS = np.random.default_rng(0).integers(0, 256, (83, 50, 4), dtype=np.uint8)


def test_bands_range_and_region_of_an_array() -> None:
    selection = Selection(bands=(4, 2), value_range=(10, 200), region=(5, 30, 20, 40))
    with open_rows(PIXELS, selection=selection) as rows:
        assert (rows.height, rows.width, rows.channels) == (40, 20, 2)
        found = np.concatenate([rows.read(0, 33), rows.read(33, 40)])
        assert rows_info(rows).metadata["place"] == (1, 0, 5, 0, 1, 30)
    expected = np.clip((PIXELS[30:70, 5:25][:, :, [3, 1]].astype(float) - 10) / 190, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    wide = PIXELS.astype(np.int32) * 100000
    with open_rows(wide, selection=Selection(value_range=(0, 25_500_000))) as rows:
        np.testing.assert_allclose(rows.read(0, 83), PIXELS / 255, atol=1e-6)


def test_pixels_made_of_squares_of_others_count_if_half_of_the_square_does() -> None:
    mask = np.zeros((83, 50), np.bool_)
    mask[:3, :3] = True
    source = MaskedRows(ArrayRows(PIXELS), ArrayRows(mask))
    rows = ShrunkRows(source, 4)
    assert (rows.height, rows.width) == (20, 12)
    means = PIXELS[:80, :48].reshape(20, 4, 12, 4, 4).mean(axis=(1, 3))
    assert np.abs(np.concatenate([rows.read(0, 7), rows.read(7, 20)]) - means).max() <= 0.5
    read_mask = mask_reader(rows)
    assert read_mask is not None
    whole = read_mask(0, 20)
    assert whole[0, 0] and whole.sum() == 1
    cut = RegionRows(rows, (0, 0, 2, 2))
    assert cut.read_mask is not None and cut.read_mask(0, 2).tolist() == [[True, False], [False, False]]
    with pytest.raises(XCiTError, match="4 x 83 pixels can't be reduced by the factor 5"):
        ShrunkRows(ArrayRows(PIXELS[:, :4]), 5)


def test_identity_changes_with_what_is_selected() -> None:
    """If the identity did not change, a killed run could be resumed with another region of the same file."""
    source = ArrayRows(PIXELS, RowsInfo(identity="file"))
    mask = ArrayRows(PIXELS[:, :, 0])
    choices: list[dict[str, Any]] = [{}, {"bands": (1,)}, {"value_range": (0, 1)}, {"region": (0, 0, 9, 9)}]
    found = []
    for choice in choices:
        with open_rows(source, selection=Selection(**choice)) as rows:
            found.append(rows_info(rows).identity)
    found.append(rows_info(ShrunkRows(source, 2)).identity)
    assert len(set(found)) == 5 and None not in found
    assert rows_info(MaskedRows(source, mask)).identity is None


def test_levels_by_micrometres_a_pixel() -> None:
    info = RowsInfo(name="s", levels=((4000, 4000), (1000, 1000), (250, 250)), metadata={"mpp": 0.2527})
    found = [level_of(info, mpp) for mpp in (0.25, 0.5, 1, 2, 4, 8)]
    assert found == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]
    for mpp in (0.1, 0.35):
        with pytest.raises(XCiTError, match=f"s: no level gives {mpp} micrometres per pixel"):
            level_of(info, mpp)


def test_transforms() -> None:
    assert moved((2, 1, 5, 0, -3, 7), 10, 20) == (2, 1, 45, 0, -3, -53)
    assert enlarged((2, 1, 5, 0, -3, 7), 4, 2) == (8, 2, 5, 0, -6, 7)
    assert level_place((100, 50), (25, 10)) == enlarged(IDENTITY, 5, 4)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"level": 1, "mpp": 0.5}, "give a level, or micrometres per pixel"),
        ({"mpp": 0.0}, "mpp is 0.0, but must be above 0"),
        ({"bands": ()}, "give at least one band"),
        ({"bands": (0, 1)}, "counted from 1"),
        ({"value_range": (3.0, 3.0)}, "must be two numbers, the lower one first"),
        ({"value_range": (1.0,)}, "must be two numbers"),
        ({"region": (0, 0, 0, 5)}, "must be x, y, width and height in pixels"),
        ({"region": (1, 2, 3)}, "must be x, y, width and height in pixels"),
    ],
)
def test_what_means_nothing_is_said_in_one_line(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        Selection(**choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"bands": (5,)}, "photo: no band 5: the image has 4 bands, counted from 1"),
        ({"level": 1}, "photo: no level 1: the image has only one size"),
        ({"mpp": 1.0}, "photo: the file does not say how large its pixels are"),
        ({"region": (0, 80, 9, 9)}, "photo: the region 0,80,9,9 extends beyond the image of 50 x 83 pixels"),
    ],
)
def test_what_an_image_does_not_have_is_said_in_one_line(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message), open_rows(PIXELS, name="photo", selection=Selection(**choice)):
        pass
