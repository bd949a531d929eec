"""Pictures of principal components."""

import numpy as np
import pytest

from xcit.draw.components import component_picture


def test_two_kinds_of_cells_have_two_colours_and_those_left_out_are_white() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(0, 0.01, (20, 30, 8)).astype(np.float32)
    features[:, 15:] += np.arange(8)
    features[3:5, 4:6] = np.nan
    picture = component_picture(features)
    assert picture.shape == (20, 30, 3) and (picture[3:5, 4:6] == 255).all()
    red = picture[..., 0].astype(int)
    assert (red[:, 15:].min() - np.delete(red[:, :15], (3, 4), axis=0).max()) > 150


def test_large_maps_are_shown_by_every_few_rows_and_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcit.draw.components._MOST_CELLS", 100)
    features = np.random.default_rng(0).random((31, 20, 2), dtype=np.float32)
    assert component_picture(features).shape == (11, 7, 3)  # every third


def test_nothing_at_all_is_white() -> None:
    assert (component_picture(np.full((4, 5, 3), np.nan, np.float32)) == 255).all()
