"""Tests the augmentation of annotated images: boxes and masks must still fit the pixels."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.data.coco import open_coco
from xcit.data.detection_transforms import (
    AnnotatedImage,
    DetectionAugmentation,
    TrainableImages,
    augmented_annotations,
    collate_detections,
)
from xcit.errors import XCiTError

PLAIN = DetectionAugmentation(flip=0.0, crop=0.0, short_sides=(60,), long_side=90)


def annotated() -> AnnotatedImage:
    """Returns a black image of 80 x 60 pixels with a white rectangle, and the rectangle's box and mask."""
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 20:60] = 1
    boxes = np.array([[20, 10, 60, 30]], np.float32)
    return AnnotatedImage(np.repeat(255 * mask[..., None], 3, axis=2), boxes, np.array([4]), mask[None])


def check(parts: list[torch.Tensor]) -> None:
    """Checks that the white pixels are those of the mask, and that the box is the smallest around them."""
    pixels, boxes, labels, masks = parts
    assert pixels.dtype == masks.dtype == torch.uint8 and boxes.dtype == torch.float32
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box.numpy(), np.array(found), atol=1.01)
        assert ((pixels[0] > 127) != mask.bool()).float().mean() < 0.05
    assert labels.tolist() == [4] * len(boxes)


def test_nothing_but_a_size() -> None:
    parts = augmented_annotations(annotated(), PLAIN)
    assert parts[0].shape == (3, 60, 80)
    assert parts[1].tolist() == [[20, 10, 60, 30]]
    check(parts)
    check(augmented_annotations(annotated(), replace(PLAIN, short_sides=(45,))))
    assert augmented_annotations(annotated(), replace(PLAIN, short_sides=(85,)))[0].shape == (3, 68, 90)


def test_a_mirror_image() -> None:
    parts = augmented_annotations(
        annotated()._replace(boxes=np.array([[10, 10, 60, 30]], np.float32)), replace(PLAIN, flip=1.0)
    )
    assert parts[1].tolist() == [[20, 10, 70, 30]]
    check(augmented_annotations(annotated(), replace(PLAIN, flip=1.0)))


def test_parts_lose_what_they_do_not_show() -> None:
    config = DetectionAugmentation(
        flip=0.5, crop=1.0, crop_short_sides=(60, 90), crop_size=(20, 50), short_sides=(30, 60), long_side=200
    )
    random.seed(0)
    counts = set()
    for _ in range(60):
        parts = augmented_annotations(annotated(), config)
        assert min(parts[0].shape[1:]) <= 60 and parts[0].shape[1:] == parts[3].shape[1:]
        counts.add(len(parts[1]))
        if len(parts[1]) and parts[3].any():
            check(parts)
        assert (parts[1] >= 0).all()
    assert counts == {0, 1}


def test_the_published_numbers() -> None:
    config = DetectionAugmentation()
    assert config.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    random.seed(1)
    sides = {min(augmented_annotations(annotated(), replace(config, crop=0.0))[0].shape[1:]) for _ in range(20)}
    assert len(sides) > 5 and sides <= set(config.short_sides)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flip": 1.5}, "flip is 1.5"),
        ({"short_sides": ()}, "short_sides"),
        ({"short_sides": (0,)}, "above 0"),
        ({"crop_size": (600, 384)}, "crop_size"),
    ],
)
def test_impossible_settings_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(XCiTError, match=words):
        replace(DetectionAugmentation(), **change)  # type: ignore[arg-type]


def test_samples_of_many_sizes_are_joined_as_lists() -> None:
    small = augmented_annotations(annotated(), replace(PLAIN, short_sides=(30,)))
    parts: Any
    parts, numbers, unreadable = collate_detections(
        [(augmented_annotations(annotated(), PLAIN), 0, ()), (small, 0, ("a.png: no such file",))]
    )
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert numbers.tolist() == [0, 0] and unreadable == ["a.png: no such file"]


def test_what_is_trained_on(tmp_path: Path) -> None:
    sizes = {"wide": (40, 60), "high": (60, 40), "narrow": (31, 90), "empty": (50, 50), "crowded": (50, 50)}
    for name, size in sizes.items():
        Image.new("RGB", size[::-1], "white").save(tmp_path / f"{name}.png")
    box = {"category_id": 5, "bbox": [-5, 10, 25, 12], "segmentation": [[0, 10, 20, 10, 20, 22, 0, 22]]}
    values = {
        "images": [
            {"id": number, "file_name": f"{name}.png", "height": size[0], "width": size[1]}
            for number, (name, size) in enumerate(sizes.items())
        ],
        "categories": [{"id": 5, "name": "box"}],
        "annotations": [
            *({"id": number, "image_id": number, **box} for number in range(3)),
            {"id": 9, "image_id": 4, "iscrowd": 1, **box},
        ],
    }
    (tmp_path / "all.json").write_text(json.dumps(values))
    images = open_coco(tmp_path / "all.json", "train")
    trained = TrainableImages(images, num_channels=3, with_empty=False)
    assert [images.images[index].path.stem for index in trained.indices] == ["wide", "high"]
    assert trained.groups() == [1, 0]
    first, _ = trained[0]
    assert first.boxes.tolist() == [[0, 10, 20, 22]] and first.labels.tolist() == [1]
    assert first.masks.shape == (1, 40, 60) and first.masks.sum() == 240
    everything = TrainableImages(images, num_channels=1, with_empty=True)
    assert len(everything) == 4
    empty, _ = everything[3]
    assert empty.pixels.shape == (50, 50, 1) and empty.boxes.shape == (0, 4) and empty.masks.shape == (0, 50, 50)
    assert [len(part) for part in augmented_annotations(empty, DetectionAugmentation(crop=1.0))][1:] == [0, 0, 0]
