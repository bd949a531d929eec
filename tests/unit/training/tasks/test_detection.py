"""Tests the detection task on tiny scenes: losses decrease, each image is measured one time, problems are reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.data.coco import open_coco
from xcit.data.detection_transforms import DetectionAugmentation
from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.optimizer import build_optimizer
from xcit.training.engine.task import Layout
from xcit.training.run import train
from xcit.training.tasks.detection import DetectionConfig, DetectionTask, evaluate_detection, match_categories
from xcit.zoo import get_model, save_model

COLOURS = {3: (220, 40, 40), 8: (40, 60, 220)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes images with squares of two colours; some are higher than wide, and one per split has no square."""
    root, draw = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        (root / split).mkdir()
        images: list[Any] = []
        annotations: list[Any] = []
        for number in range(count):
            height, width = (64, 48) if number % 3 == 0 else (48, 64)
            pixels = np.full((height, width, 3), 128, np.uint8)
            for _ in range(0 if number == 4 else 2):
                side = int(draw.integers(14, 24))
                x, y = int(draw.integers(0, width - side)), int(draw.integers(0, height - side))
                category = int(draw.choice(list(COLOURS)))
                pixels[y : y + side, x : x + side] = COLOURS[category]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + side, y, x + side, y + side, x, y + side]],
                    }
                )
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        (root / "annotations").mkdir(exist_ok=True)
        categories = [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def config(data: Path) -> DetectionConfig:
    backbone = XCiTConfig(
        patch_size=8, embed_dim=32, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    return DetectionConfig(
        name="tiny",
        model=MaskRCNNConfig(
            backbone=backbone,
            num_classes=0,
            channels=16,
            box_features=32,
            anchor_scale=4.0,
            short_side=48,
            long_side=64,
        ),
        data=str(data),
        augmentation=DetectionAugmentation(
            short_sides=(48, 56), long_side=80, crop=0.3, crop_short_sides=(48,), crop_size=(32, 48)
        ),
        optimizer=OptimizerConfig(lr=2e-3, undecayed="layer_norms"),
        schedule=ScheduleConfig(epochs=2, warmup_epochs=0),
        run=RunConfig(batch_size=4, max_device_batch=2, num_workers=0, log_every=1),
    )


def test_the_data_decide_the_classes(scenes: Path) -> None:
    task = DetectionTask(config(scenes))
    assert task.config.model.num_classes == 2
    assert (task.num_inputs, task.num_steps, task.problems) == (9, 2, ())
    with pytest.raises(XCiTError, match=r"has 2 classes, the model has 80: set model\.num_classes to 2"):
        DetectionTask(replace(config(scenes), model=replace(config(scenes).model, num_classes=80)))
    with pytest.raises(XCiTError, match="no data of its own"):
        DetectionTask(replace(config(scenes), data=""))


def test_parts_are_of_one_shape_and_the_same_for_any_number_of_processes(scenes: Path) -> None:
    one = DetectionTask(config(scenes), Layout(batch_size=4, accumulation=2))
    parts = list(one.train_batches(0))
    assert len(parts) == 4
    for images, boxes, labels, masks in parts:
        assert len(images) == len(boxes) == len(labels) == len(masks) == 2
    # The images of a part have the same orientation, except in parts of leftover images.
    wide = [[image.shape[2] >= image.shape[1] for image in images] for images, *_ in parts]
    assert sum(len(set(own)) == 1 for own in wide) >= 2
    for rank in (0, 1):
        other = DetectionTask(config(scenes), Layout(batch_size=4, rank=rank, world_size=2))
        for expected, found in zip(parts[rank::2], other.train_batches(0), strict=True):
            assert all(
                torch.equal(a, b) for e, f in zip(expected, found, strict=True) for a, b in zip(e, f, strict=True)
            )
    assert len(list(one.train_batches(0, 1))) == 2


def test_twenty_steps_lower_the_loss(scenes: Path) -> None:
    task = DetectionTask(config(scenes))
    optimizer = build_optimizer(task.model, task.config.optimizer)
    task.model.train()
    course = []
    for epoch in range(10):
        for batch in task.train_batches(epoch):
            losses = task.loss(task.model, batch)
            assert set(losses) > {"loss", "loss_mask", "loss_objectness"}
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            course.append(losses["loss"].item())
    assert len(course) == 20
    assert sum(course[-4:]) < 0.8 * sum(course[:4])


def test_a_run_ends_in_a_detector_and_goes_on_where_it_was(scenes: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    figures = train(config(scenes), tmp_path / "run", device="cpu", announce=lines.append)
    assert set(figures) == {f"{kind}_{name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")}
    model = get_model(tmp_path / "run" / "model.safetensors")
    assert isinstance(model, MaskRCNN) and model.info is not None
    assert (model.info.class_names, model.info.category_ids) == (("red", "blue"), (3, 8))
    # After a stop, the second epoch is the same.
    train(replace(config(scenes), schedule=ScheduleConfig(epochs=1, warmup_epochs=0)), tmp_path / "half", device="cpu")
    saved = torch.load(tmp_path / "half" / "last.pt", weights_only=False)
    assert saved["position"]["epoch"] == 1
    again = train(config(scenes), tmp_path / "run", resume="auto", device="cpu")
    assert again == figures


def trained(scenes: Path) -> MaskRCNN:
    task = DetectionTask(config(scenes))
    assert isinstance(task.model, MaskRCNN)
    return task.model.eval()


def test_unreadable_images_are_not_measured_and_named(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "copy")
    (tmp_path / "copy" / "val" / "1.png").write_bytes(b"no image")
    images, model = open_coco(tmp_path / "copy", "val"), trained(scenes)
    counted: list[int] = []
    report = evaluate_detection(model, images, report=counted.append)
    assert report.num_images == 4 and sum(counted) == 5
    assert len(report.unreadable) == 1 and "1.png" in report.unreadable[0]
    assert not model.training
    for number in range(5):
        (tmp_path / "copy" / "val" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(XCiTError, match=r"none of the 5 images could be read; the first: .*png"):
        evaluate_detection(model, images)


def test_classes_are_matched_by_name(scenes: Path) -> None:
    images, model = open_coco(scenes, "val"), trained(scenes)
    assert match_categories(model, images) == {1: 3, 2: 8}
    model.info = DetectorInfo(name="other", class_names=("green", "blue", "red"))
    assert match_categories(model, images) == {3: 3, 2: 8}
    model.info = DetectorInfo(name="other", class_names=("green", "blue"))
    with pytest.raises(XCiTError, match="the model's 2 classes do not include 'red'"):
        match_categories(model, images)
    model.info = None
    assert match_categories(model, images) == {1: 3, 2: 8}
    model.reset_classifier(5)
    with pytest.raises(XCiTError, match="has 2 classes, and the model has 5 classes without names"):
        match_categories(model, images)


def test_the_backbone_starts_from_a_classifier(scenes: Path, tmp_path: Path) -> None:
    shape = replace(config(scenes).model.backbone, cls_depth=2, num_classes=5, global_pool="cls")
    classifier: Any = XCiT(shape)
    save_model(classifier, tmp_path / "classifier.safetensors")
    with_weights = replace(config(scenes), backbone_weights=str(tmp_path / "classifier.safetensors"))
    model: Any = DetectionTask(with_weights).model
    assert isinstance(model, MaskRCNN)
    qkv = "blocks.1.xca.qkv.weight"
    assert torch.equal(model.get_parameter(f"backbone.xcit.{qkv}"), classifier.get_parameter(qkv))
    other = replace(config(scenes).model, backbone=replace(config(scenes).model.backbone, depth=3))
    with pytest.raises(XCiTError, match="its depth is 2, but the model's is 3"):
        DetectionTask(replace(with_weights, model=other))
    with pytest.raises(XCiTError, match=r"backbone_weights: .*no such file"):
        DetectionTask(replace(config(scenes), backbone_weights=str(tmp_path / "no.safetensors")))


def test_problems_of_the_data_are_announced(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "copy")
    path = tmp_path / "copy" / "annotations" / "train.json"
    content: dict[str, Any] = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [900, 900, 5, 5]
    content["annotations"][1]["category_id"] = 77
    path.write_text(json.dumps(content))
    lines: list[str] = []
    once = replace(config(tmp_path / "copy"), schedule=ScheduleConfig(epochs=1, warmup_epochs=0))
    train(once, tmp_path / "run", device="cpu", announce=lines.append)
    assert any(
        "warning: 1 objects are not trained on, because their box is outside the image" in line for line in lines
    )
    assert any("warning: 1 annotations left out, because no category has their category_id" in line for line in lines)


def test_a_weight_for_each_class_is_needed(scenes: Path) -> None:
    with pytest.raises(XCiTError, match="3 class_weights for 2 classes: give one for each"):
        DetectionTask(replace(config(scenes), class_weights=(1.0, 1.0, 2.0)))
