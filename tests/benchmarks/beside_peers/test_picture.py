from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from beside_peers import BenchResult, draw_growth
from beside_peers.picture import _spaced
from PIL import Image


def draw(result: BenchResult, path: Path) -> np.ndarray:
    draw_growth(result, result.models[0], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("sizes", [(224,), (224, 448), (224, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)])
def test_draws_a_panel_for_time_and_one_for_memory(
    tmp_path: Path, make_result: Callable[..., BenchResult], sizes: tuple[int, ...]
) -> None:
    both = draw(make_result(sizes=sizes), tmp_path / "both.png")
    time = draw(make_result(sizes=sizes, memory=False), tmp_path / "time.png")
    assert both.shape[1] > 1.5 * time.shape[1] > 500
    for picture in (both, time):
        colours = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}
        assert {(0x08, 0x51, 0x9C), (0xD9, 0x5F, 0x02)} <= colours, "a line of ours and one of timm's"


def test_labels_of_sizes_near_one_another_are_left_out() -> None:
    places = [((size // 16) ** 2, size) for size in (224, 240, 256, 1024, 2048)]
    assert [size for _, size in _spaced(places)] == [2048, 1024, 256]
    assert _spaced([(196, 224)]) == [(196, 224)]
    assert len(_spaced(places[:3])) == 3, "on an axis that is all theirs they have room"
