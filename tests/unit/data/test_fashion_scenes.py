"""Tests composed scenes: exact masks, seeded draws, different garments in the two splits, folders for training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.data.fashion_scenes import SceneConfig, compose, scenes, write_segmentation_scenes
from xcit.data.named import FASHION_MNIST_CLASSES
from xcit.data.segmentation import open_scenes
from xcit.errors import XCiTError


def blocks() -> list[tuple[Image.Image, int]]:
    """Returns ten pictures, one per class, in which a white rectangle in the middle stands for the garment."""
    pictures = []
    for label in range(10):
        grey = np.zeros((28, 28), np.uint8)
        grey[4:24, 6:22] = 255
        pictures.append((Image.fromarray(grey), label))
    return pictures


def test_masks_are_what_is_seen() -> None:
    config = SceneConfig(height=64, width=80, num_garments=(2, 5), scale=(1.0, 2.0))
    hidden = 0
    for seed in range(20):
        scene = compose(blocks(), config, np.random.default_rng(seed))
        assert scene.pixels.shape == (64, 80, 3)
        assert 1 <= len(scene.garments) <= 5
        assert np.sum([garment.mask for garment in scene.garments], axis=0).max() <= 1
        labels = scene.label_map()
        for garment in scene.garments:
            assert (labels[garment.mask] == garment.label + 1).all()
            assert garment.mask.any()
        assert (labels > 0).sum() == sum(garment.mask.sum() for garment in scene.garments)
        hidden += sum(garment.mask.sum() not in {16 * 20} for garment in scene.garments)
    assert hidden


def test_a_scene_follows_from_its_seed(fashion_mnist: Path) -> None:
    one, other = (list(scenes("train", 3, seed=1)) for _ in range(2))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(one[0].pixels, one[1].pixels)
    for changed in (next(scenes("val", 1, seed=1)), next(scenes("train", 1, seed=2))):
        assert not np.array_equal(changed.pixels, one[0].pixels)


def test_a_folder_to_train_on(fashion_mnist: Path, tmp_path: Path) -> None:
    done: list[int] = []
    write_segmentation_scenes(tmp_path / "scenes", num_train=4, num_val=2, report=done.append)
    assert sum(done) == 6
    train, val = (open_scenes(str(tmp_path / "scenes"), split) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert train.class_names == ("ground", *FASHION_MNIST_CLASSES)
    (image, labels), _ = val[1]
    assert (image.size, labels.shape) == ((128, 96), (96, 128))
    assert len(np.unique(labels)) > 1
    with pytest.raises(XCiTError, match="already exists"):
        write_segmentation_scenes(tmp_path / "scenes", num_train=1, num_val=1)


@pytest.mark.parametrize("wrong", [{"scale": (2.0, 1.0)}, {"height": 30}, {"num_garments": (0, 2)}])
def test_impossible_scenes(wrong: dict[str, int]) -> None:
    with pytest.raises(XCiTError, match="SceneConfig"):
        SceneConfig(**wrong)  # type: ignore[arg-type]
