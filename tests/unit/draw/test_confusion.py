from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.draw.confusion import draw_confusion


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("num_classes", [1, 3, 60])
def test_draws_a_png_for_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    path = tmp_path / "confusion.png"
    names = [f"class {index}" for index in range(num_classes)]
    draw_confusion(np.eye(num_classes, dtype=np.int64), names, "all right", path)
    drawn = pixels(path)
    assert min(drawn.shape[:2]) > 300
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


def test_rows_are_shares_of_the_true_class(tmp_path: Path) -> None:
    """Ten times as many images of a class change the printed numbers but no colour; other shares change the colours."""
    names = ["a"] * 41  # too many classes for names: only colours
    counts = torch.randint(1, 9, (41, 41), generator=torch.Generator().manual_seed(0))
    scaled, moved = counts.clone(), counts.clone()
    scaled[3] *= 10
    moved[3] = counts[3].flip(0)
    drawn = []
    for name, matrix in (("one", counts), ("scaled", scaled), ("moved", moved)):
        draw_confusion(matrix.numpy(), names, "title", tmp_path / f"{name}.png")
        drawn.append(pixels(tmp_path / f"{name}.png"))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_class_without_images_is_drawn_too(tmp_path: Path) -> None:
    draw_confusion(np.array([[2, 1], [0, 0]]), ["cat", "dog"], "title", tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").any()


def test_names_are_text_not_formulas(tmp_path: Path) -> None:
    draw_confusion(np.eye(2, dtype=np.int64), [r"$\wrong$", "a_b^c 5$"], r"$\title$", tmp_path / "c.png")
    assert pixels(tmp_path / "c.png").any()
