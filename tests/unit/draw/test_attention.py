"""Tests that pictures show the values of the attention maps. Their look was judged by eye (see docs/attention.md)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.draw import attention as pictures
from xcit.draw.attention import draw_temperatures
from xcit.errors import XCiTError
from xcit.explain import ChannelAttentionMaps, ClassAttentionMaps, largest_cells


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def maps_of(num_heads: int = 4, height: int = 13, width: int = 18, source: str = "a.png") -> ClassAttentionMaps:
    draw = np.random.default_rng(num_heads)
    shares = draw.random((num_heads, -(-height // 4) * -(-width // 4) + 1)).astype(np.float32) ** 4
    shares /= shares.sum(axis=1, keepdims=True)
    return ClassAttentionMaps(
        source=source,
        image=draw.integers(0, 256, (height, width, 3), dtype=np.uint8),
        block=1,
        patch_size=4,
        heads=shares[:, 1:].reshape(num_heads, -(-height // 4), -(-width // 4)),
        class_token=shares[:, 0],
    )


def channels_of(num_blocks: int, num_heads: int) -> ChannelAttentionMaps:
    draw = np.random.default_rng(num_heads)
    covariance = draw.uniform(-1, 1, (num_blocks, num_heads, 8, 8)).astype(np.float32)
    temperatures = draw.random((num_blocks, num_heads)).astype(np.float32)
    return ChannelAttentionMaps(
        source="a.png", covariance=covariance, temperatures=temperatures, attention=np.full_like(covariance, 1 / 8)
    )


@pytest.mark.parametrize(("num_heads", "threshold"), [(1, None), (4, 0.6), (5, None), (16, 0.6)])
def test_draws_any_number_of_heads(tmp_path, num_heads, threshold):
    maps_of(num_heads).draw(tmp_path / "a.png", threshold=threshold)
    drawn = pixels(tmp_path / "a.png")
    assert min(drawn.shape[:2]) > 200
    assert max(drawn.shape[:2]) < 3000
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(("height", "width"), [(4, 4), (400, 4), (4, 400), (300, 200)])
def test_draws_any_shape(tmp_path, height, width):
    maps_of(height=height, width=width).draw(tmp_path / "a.png")
    assert max(pixels(tmp_path / "a.png").shape) < 4000
    assert maps_of(height=height, width=width).overlay().size == (width, height)


def test_the_overlay_is_the_map_on_the_grey_image():
    """On a black image, the brightness of the overlay increases with the mean attention."""
    maps = replace(maps_of(), image=np.zeros((13, 18, 3), dtype=np.uint8))
    brightness = np.asarray(maps.overlay().convert("L")).astype(int)
    mean = maps.to_pixels(maps.mean)
    order = np.argsort(mean.ravel(), kind="stable")
    assert (np.diff(brightness.ravel()[order]) >= -2).all(), "2: of rounding, once a channel"
    assert brightness.max() > 100


def test_below_the_threshold_the_overlay_is_grey():
    maps = maps_of()
    drawn = np.asarray(maps.overlay(threshold=0.5)).astype(int)
    kept = maps.to_pixels(largest_cells(maps.mean, 0.5))
    colourfulness = drawn.max(axis=-1) - drawn.min(axis=-1)
    assert 0 < kept.sum() < kept.size
    assert (colourfulness[~kept] == 0).all()
    assert (colourfulness[kept] > 0).any()


@pytest.mark.parametrize("heads", [np.zeros, np.ones], ids=["none", "even"])
def test_maps_without_anything_to_see(tmp_path, heads):
    """All attention is on the class token, or it is equal everywhere: no division by zero, and no amplified noise."""
    maps = maps_of()
    maps = replace(maps, heads=heads(maps.heads.shape, dtype=np.float32) / (maps.heads[0].size + 1))
    maps.draw(tmp_path / "a.png", threshold=0.6)
    assert maps.overlay().size == (18, 13)


def test_one_cell_that_holds_all_does_not_bring_out_the_noise():
    """The brightest colour stands for at least the attention of a cell in an even distribution, so noise stays dark."""
    heads = np.full((1, 50, 50), 1e-9, dtype=np.float32)
    heads[0, 10, 10] = 1
    maps = replace(maps_of(1, 200, 200), heads=heads, image=np.zeros((200, 200, 3), dtype=np.uint8))
    drawn = np.asarray(maps.overlay().convert("L"))
    assert (drawn > 50).sum() == 16


@pytest.mark.parametrize(("num_blocks", "num_heads"), [(1, 1), (24, 16)])
def test_draws_channels_and_temperatures(tmp_path, num_blocks, num_heads):
    maps = channels_of(num_blocks, num_heads)
    maps.draw(tmp_path / "a.png")
    draw_temperatures(maps.temperatures, "title", tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        drawn = pixels(tmp_path / name)
        assert 100 < min(drawn.shape[:2]) <= max(drawn.shape[:2]) < 3000
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


def test_names_are_text_not_formulas(tmp_path):
    name = r"$\wrong$ a_b^c.png"
    maps_of(source=name).draw(tmp_path / "a.png")
    replace(channels_of(1, 1), source=name).draw(tmp_path / "a.png")
    draw_temperatures(channels_of(1, 1).temperatures, name, tmp_path / "a.png")


def test_what_pictures_need_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("xcit.extras.find_spec", lambda name: None)
    for draw in (
        lambda: maps_of().draw(tmp_path / "a.png"),
        lambda: maps_of().overlay(),
        lambda: channels_of(1, 1).draw(tmp_path / "a.png"),
        lambda: draw_temperatures(channels_of(1, 1).temperatures, "title", tmp_path / "a.png"),
    ):
        with pytest.raises(XCiTError, match=r"^a picture of attention needs matplotlib: pip install 'xcit\[train\]'$"):
            draw()
    assert not list(tmp_path.iterdir())


def test_cells_that_were_left_out_show_the_image_in_grey_and_count_for_nothing() -> None:
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    heads = draw.random((2, 5, 5), dtype=np.float32)
    heads /= 2 * heads.sum(axis=(1, 2), keepdims=True)
    left_out = heads.copy()
    left_out[:, 3:] = np.nan
    shown = np.asarray(pictures.overlay_mean(image, left_out, 8))
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert np.array_equal(shown[30:], np.repeat(grey[30:, :, None], 3, axis=2))
    alone = np.asarray(pictures.overlay_mean(image[:20], heads[:, :3], 8))
    assert np.array_equal(shown[:20], alone)
    kept = largest_cells(left_out, 0.6)
    assert np.array_equal(kept[:, :3], largest_cells(heads[:, :3], 0.6)) and not kept[:, 3:].any()
