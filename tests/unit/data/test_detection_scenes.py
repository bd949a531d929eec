"""Scenes as a COCO-format data set."""

from pathlib import Path

import numpy as np
import pytest

from xcit.data.coco import open_coco
from xcit.data.detection_scenes import write_detection_scenes
from xcit.data.fashion_scenes import scenes
from xcit.data.named import FASHION_MNIST_CLASSES
from xcit.errors import XCiTError


def test_a_folder_to_train_on(fashion_mnist: Path, tmp_path: Path) -> None:
    done: list[int] = []
    write_detection_scenes(tmp_path / "scenes", num_train=4, num_val=3, seed=5, report=done.append)
    assert sum(done) == 7
    train, val = (open_coco(tmp_path / "scenes", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 3)
    assert train.class_names == FASHION_MNIST_CLASSES and train.problems == val.problems == ()
    for index, scene in enumerate(scenes("val", 3, seed=5)):
        assert np.array_equal(np.asarray(val.read(index)), scene.pixels)
        objects = val.images[index].objects
        assert [one.label for one in objects] == [garment.label for garment in scene.garments]
        masks = val.masks(index, objects)
        for one, mask, garment in zip(objects, masks, scene.garments, strict=True):
            assert np.array_equal(mask.astype(bool), garment.mask)
            x, y, width, height = (int(value) for value in one.box)
            assert mask[y : y + height, x : x + width].sum() == mask.sum() == one.area
            assert mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()
    with pytest.raises(XCiTError, match="already exists"):
        write_detection_scenes(tmp_path / "scenes", num_train=1, num_val=1)
