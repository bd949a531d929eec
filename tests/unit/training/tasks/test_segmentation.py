"""Tests segmentation: figures against scikit-learn, the published loss and recipes, and short runs on squares."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score, recall_score
from torch import Tensor

import xcit
from xcit.config import override, save_yaml
from xcit.data.segmentation import IGNORED, open_scenes
from xcit.data.segmentation_transforms import SegmentationAugmentation
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.inference.full_size import FullSize
from xcit.inference.segment import SlidingWindow
from xcit.models import Segmenter, SegmenterConfig, XCiT, XCiTConfig
from xcit.models.segmentation import SegmenterKind
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import Layout
from xcit.training.recipes import get_recipe
from xcit.training.tasks.segmentation import (
    SegmentationConfig,
    SegmentationTask,
    count_pixels,
    evaluate_segmentation,
    pixel_loss,
    report_of,
)
from xcit.zoo import SEGMENTERS, get_model, save_model

COLOURS = np.array([[20, 20, 20], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Writes images of coloured squares on grey, in which each colour is a class; a stripe has no label."""
    root, draw = tmp_path / "squares", np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((40, 44 + index), np.uint8)
            for label in (1, 2, 3):
                top, left = draw.integers(0, 24, 2)
                labels[top : top + 16, left : left + 16] = label
            pixels = np.clip(COLOURS[labels] + draw.normal(0, 10, (*labels.shape, 3)), 0, 255).astype(np.uint8)
            labels[:, 0] = IGNORED
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index}.png")
    (root / "classes.txt").write_text("ground\nred\ngreen\nblue\n")
    return root


def config_of(data: Path, kind: SegmenterKind = "upernet", **changes: object) -> SegmentationConfig:
    backbone = XCiTConfig(
        patch_size=4, embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    config = SegmentationConfig(
        name="small",
        model=SegmenterConfig(
            kind=kind, backbone=backbone, num_classes=0, channels=16, auxiliary_channels=8, out_indices=(0, 0, 1, 1)
        ),
        preprocessing=SegmentationPreprocessing(long_side=48, short_side=40, mean=(0.2,) * 3, std=(0.3,) * 3),
        data=str(data),
        epoch_steps=10,
        augmentation=SegmentationAugmentation(crop_size=32, distort=False),
        optimizer=OptimizerConfig(lr=3e-2, weight_decay=0.01, undecayed="layer_norms"),
        schedule=ScheduleConfig(kind="linear", epochs=2, warmup_epochs=0, warmup_steps=3, warmup_lr=1e-6, min_lr=0.0),
        run=RunConfig(batch_size=4, num_workers=0, log_every=1),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


# Figures and loss


def test_figures_are_scikit_learns_with_ignored_and_absent_classes() -> None:
    draw = np.random.default_rng(0)
    num_classes = 12
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    all_true, all_found = [], []
    for size in ((30, 41), (17, 8), (25, 25)):
        labels = draw.choice([0, 1, 2, 3, 5, 8, 9, IGNORED], size).astype(np.uint8)
        # Class 4 is neither true nor predicted; 10 is only predicted; 9 is only true.
        found = np.where(draw.random(size) < 0.6, labels, draw.choice([0, 1, 2, 3, 5, 8, 10], size)).astype(np.uint8)
        found[found == IGNORED] = 0
        found[found == 9] = 1
        confusion += count_pixels(labels, found, num_classes)
        all_true.append(labels[labels != IGNORED])
        all_found.append(found[labels != IGNORED])
    true, found = np.concatenate(all_true), np.concatenate(all_found)
    report = report_of(confusion, num_images=3)
    assert confusion.sum() == len(true)
    seen = sorted(set(true) | set(found))
    expected = 100 * jaccard_score(true, found, labels=seen, average=None, zero_division=0.0)
    for label, value in zip(seen, expected, strict=True):
        assert report.iou[label] == pytest.approx(value, abs=1e-9)
    assert [label for label, value in enumerate(report.iou) if np.isnan(value)] == [4, 6, 7, 11]
    assert report.miou == pytest.approx(expected.mean(), abs=1e-9)
    assert (report.iou[9], report.iou[10]) == (0.0, 0.0)
    recall = recall_score(true, found, labels=sorted(set(true)), average=None, zero_division=0.0)
    assert report.macc == pytest.approx(100 * recall.mean(), abs=1e-9)
    assert report.aacc == pytest.approx(100 * (true == found).mean(), abs=1e-9)


def test_the_loss_averages_over_ignored_pixels_too() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7)).to(torch.uint8)
    labels[0, :3] = IGNORED
    total = 0.0
    for b in range(2):
        for y in range(6):
            for x in range(7):
                if labels[b, y, x] != IGNORED:
                    total -= logits[b, :, y, x].log_softmax(dim=0)[int(labels[b, y, x])].item()
    assert pixel_loss(logits, labels).item() == pytest.approx(total / (2 * 6 * 7), rel=1e-5)
    assert pixel_loss(logits, torch.full_like(labels, IGNORED)).item() == 0


def test_each_scene_is_measured_once_by_whichever_process(data: Path) -> None:
    torch.manual_seed(0)
    model = SegmentationTask(config_of(data)).model
    scenes, spec = open_scenes(str(data), "val"), config_of(data).preprocessing
    whole = evaluate_segmentation(model, scenes, spec)
    assert whole.num_images == 3
    assert int(whole.confusion.sum()) == sum(40 * (43 + index) for index in range(3))
    parts: list[list[Tensor]] = []
    for rank in range(2):
        seen: list[Tensor] = []
        parts.append(seen)

        def keep(tensor: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(tensor)
            return tensor

        evaluate_segmentation(model, scenes, spec, layout=Layout(batch_size=4, rank=rank, world_size=2), reduce=keep)
    assert torch.equal(parts[0][0] + parts[1][0], whole.confusion)
    assert int(parts[0][1] + parts[1][1]) == 3
    windows = evaluate_segmentation(model, scenes, spec, window=SlidingWindow(size=32, stride=16))
    assert int(windows.confusion.sum()) == int(whole.confusion.sum())


@pytest.mark.parametrize("ignore_exif", [False, True])
def test_scenes_at_their_own_size_are_measured_in_stripes(data: Path, ignore_exif: bool) -> None:
    torch.manual_seed(0)
    model: Any = SegmentationTask(config_of(data)).model.eval()
    scenes, own = (
        open_scenes(str(data), "val", ignore_exif=ignore_exif),
        SegmentationPreprocessing(long_side=0, short_side=0),
    )
    expected = evaluate_segmentation(model, scenes, own)
    fused, full_size = model.fuse(), FullSize(memory="1GB")
    found = evaluate_segmentation(fused, scenes, own, full_size=full_size)
    assert found.num_images == 3 and torch.equal(found.confusion, expected.confusion)
    Image.fromarray(np.zeros((40, 45), np.uint8)).save(data / "labels/val/0.png")
    (data / "images/val/1.png").write_text("nothing")
    some = evaluate_segmentation(fused, scenes, own, full_size=full_size)
    assert some.num_images == 1 and len(some.unreadable) == 2
    assert "the label map has 45 x 40 pixels, but the image 0.png " in some.unreadable[0]


def test_scenes_that_can_t_be_read_are_named_and_the_others_measured(data: Path) -> None:
    Image.fromarray(np.full((40, 45), 7, np.uint8)).save(data / "labels/val/1.png")
    model = SegmentationTask(config_of(data)).model
    report = evaluate_segmentation(model, open_scenes(str(data), "val"), config_of(data).preprocessing)
    assert report.num_images == 2
    (line,) = report.unreadable
    assert line.startswith(str(data / "labels/val/1.png"))
    assert "1800 of 1800 pixels have a label that is not a class: 7" in line


# Training


@pytest.mark.parametrize("kind", ["upernet", "sem-fpn"])
def test_it_learns_and_what_it_writes_can_be_used(data: Path, tmp_path: Path, kind: SegmenterKind) -> None:
    figures = xcit.train(config_of(data, kind), tmp_path / "run", device="cpu")
    assert figures.keys() == {"mIoU", "mAcc", "aAcc"}
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line["kind"] == "step"]
    assert len(losses) == 20
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert figures["aAcc"] > 50
    model = get_model(tmp_path / "run" / "model.safetensors")
    assert isinstance(model, Segmenter)
    assert model.info is not None
    assert model.info.class_names == ("ground", "red", "green", "blue")
    scenes = open_scenes(str(data), "val")
    again = evaluate_segmentation(model, scenes, model.info.preprocessing)
    assert again.figures() == pytest.approx(figures)
    assert (tmp_path / "run" / "best.safetensors").exists()
    resolved = get_recipe(str(tmp_path / "run" / "config.yaml"))
    assert resolved == replace(config_of(data, kind), model=replace(config_of(data, kind).model, num_classes=4))


def test_batches_go_on_from_any_step_over_passes_of_the_data(data: Path) -> None:
    task = SegmentationTask(config_of(data, epoch_steps=3))  # two steps per pass over the images
    assert (task.num_steps, task.num_inputs) == (3, 8)
    run = [batch for epoch in range(2) for batch in task.train_batches(epoch, 0)]
    assert len(run) == 6
    images, labels = run[0]
    assert (images.shape, labels.shape, labels.dtype) == ((4, 3, 32, 32), (4, 32, 32), torch.uint8)
    for epoch, first_step in ((0, 1), (0, 2), (1, 0), (1, 2)):
        rest = list(task.train_batches(epoch, first_step))
        assert len(rest) == 3 - first_step
        for (one, _), (other, _) in zip(rest, run[3 * epoch + first_step : 3 * epoch + 3], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(run[0][0], run[2][0])


def test_a_run_resumed_in_the_middle_ends_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    config = config_of(data, epoch_steps=4)
    config = replace(config, run=replace(config.run, save_every_steps=3, keep_checkpoints=9))
    xcit.train(config, tmp_path / "whole", device="cpu")
    middle = sorted((tmp_path / "whole").glob("step-*.pt"))[0]
    xcit.train(config, tmp_path / "resumed", device="cpu", resume=middle)
    one, other = (get_model(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_accumulated_parts_are_parts_of_the_same_batch(data: Path) -> None:
    whole = SegmentationTask(config_of(data))
    parts = SegmentationTask(config_of(data), Layout(batch_size=4, accumulation=2))
    (images, _), taken = next(whole.train_batches(0)), list(parts.train_batches(0, 9))
    assert len(taken) == 2
    first = [next(batches)[0] for batches in [parts.train_batches(0)] for _ in range(2)]
    assert torch.equal(torch.stack(first, dim=1).flatten(0, 1), images)


def test_a_backbone_to_start_from(data: Path, tmp_path: Path) -> None:
    config = config_of(data)
    shape = replace(config.model.backbone, cls_depth=1, num_classes=5, global_pool="cls")
    torch.manual_seed(5)
    classifier = XCiT(shape)
    save_model(classifier, tmp_path / "classifier.safetensors")
    model = SegmentationTask(replace(config, backbone_weights=str(tmp_path / "classifier.safetensors"))).model
    assert isinstance(model, Segmenter)
    expected = classifier.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.xcit.state_dict().items())
    save_model(model, tmp_path / "segmenter.safetensors")
    again = SegmentationTask(replace(config, backbone_weights=str(tmp_path / "segmenter.safetensors"))).model
    assert isinstance(again, Segmenter)
    assert all(
        torch.equal(value, again.state_dict()[name])
        for name, value in model.backbone.state_dict(prefix="backbone.").items()
    )
    wider = replace(config.model, backbone=replace(config.model.backbone, num_heads=4))
    with pytest.raises(XCiTError, match=r"backbone_weights: .* does not fit: its num_heads is 2, but the model's is 4"):
        SegmentationTask(replace(config, model=wider, backbone_weights=str(tmp_path / "classifier.safetensors")))
    with pytest.raises(XCiTError, match=r"backbone_weights: none\.pth: no such file"):
        SegmentationTask(replace(config, backbone_weights="none.pth"))


def test_what_does_not_fit_is_named(data: Path) -> None:
    config = config_of(data)
    with pytest.raises(XCiTError, match="has 4 classes, the model has 7"):
        SegmentationTask(replace(config, model=replace(config.model, num_classes=7)))
    with pytest.raises(XCiTError, match="no data of its own"):
        SegmentationTask(replace(config, data=""))
    with pytest.raises(XCiTError, match="crop_size is 3, smaller than one patch"):
        replace(config, augmentation=SegmentationAugmentation(crop_size=3))
    with pytest.raises(XCiTError, match="epoch_steps is -1"):
        replace(config, epoch_steps=-1)
    few = replace(config, run=replace(config.run, batch_size=16))
    assert SegmentationTask(few, Layout(batch_size=16)).num_steps == 0


# Recipes


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_published_recipes(name: str, tmp_path: Path) -> None:
    config, record = get_recipe(name), SEGMENTERS[name]
    assert isinstance(config, SegmentationConfig)
    assert config.name == record.recipe
    is_upernet = name.startswith("upernet")
    rates = {"tiny-12": 0.0, "small-12": 0.05, "small-24": 0.1, "medium-24": 0.15 if is_upernet else 0.2}
    rate = rates[record.architecture.rpartition("-p")[0]]
    assert config.model == replace(record.model, backbone=replace(record.model.backbone, drop_path_rate=rate))
    assert config.epoch_steps * config.schedule.epochs == (160_000 if is_upernet else 80_000)
    assert config.epoch_steps == (16_000 if is_upernet else 8_000)
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (6e-5, 0.01, (0.9, 0.999), 1e-8)
    assert (optimizer.undecayed, optimizer.clip_grad) == ("layer_norms", 0.0)
    assert (schedule.kind, schedule.warmup_steps, schedule.min_lr) == ("linear", 1500, 0.0)
    assert schedule.warmup_lr == pytest.approx(6e-5 * 1e-6)
    assert config.run.batch_size == 16
    assert config.augmentation == SegmentationAugmentation(
        scale=(0.5, 2.0), crop_size=512, max_class_share=0.75, flip=0.5, distort=True
    )
    save_yaml(config, tmp_path / "config.yaml")
    assert get_recipe(str(tmp_path / "config.yaml")) == config
    assert override(config, {"model.channels": "64", "model.out_indices": "0,1,2,3"}).model.out_indices == (0, 1, 2, 3)


@pytest.mark.parametrize("label", [0, 2])
def test_an_ignored_label_counts_neither_in_training_nor_in_a_figure(data: Path, label: int) -> None:
    config = replace(config_of(data), ignore_index=label)
    task = SegmentationTask(config)
    labels = torch.stack([labels for images, labels in task.train_batches(0)])
    assert label not in labels
    assert {0, 1, 2, 3} - {label} <= set(labels.unique().tolist())
    plain = SegmentationTask(config_of(data))
    found, before = (
        evaluate_segmentation(task.model, one.watched, config.preprocessing).confusion for one in (task, plain)
    )
    assert found[label].sum() == 0
    before[label] = 0
    assert torch.equal(found, before)


def test_a_class_that_is_ignored_has_no_iou_though_others_are_taken_for_it() -> None:
    confusion = torch.tensor([[0, 0, 0], [2, 6, 0], [0, 0, 4]])
    report = report_of(confusion, num_images=1, ignored=0)
    assert np.isnan(report.iou[0])
    assert report.iou[1:] == pytest.approx((75.0, 100.0))
    assert report.miou == pytest.approx(87.5)
    assert report_of(confusion, num_images=1).miou == pytest.approx(175 / 3)


@pytest.mark.parametrize(("ignored", "written"), [(254, [0, 254, 1]), (0, [0, 1, 255])])
def test_a_label_that_is_no_class_can_be_ignored(tmp_path: Path, ignored: int, written: list[int]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(tmp_path / "images/val/a.png")
    Image.fromarray(np.array([written], np.uint8)).save(tmp_path / "labels/val/a.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    scenes = replace(open_scenes(str(tmp_path), "val"), ignored=ignored)
    expected = [IGNORED if value in (ignored, IGNORED) else value for value in written]
    assert scenes[0][0].labels.tolist() == [expected]


def test_ade20k_s_labels_are_ignored_by_their_class(tmp_path: Path) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder / "validation").mkdir(parents=True)
    Image.new("RGB", (4, 1)).save(tmp_path / "images/validation/a.png")
    Image.fromarray(np.array([[0, 1, 2, 150]], np.uint8)).save(tmp_path / "annotations/validation/a.png")
    scenes = replace(open_scenes(str(tmp_path), "val"), ignored=1)
    assert scenes[0][0].labels.tolist() == [[IGNORED, 0, IGNORED, 149]]


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_the_focal_loss_has_gradients_where_a_pixel_is_certain_or_has_no_label(gamma: float) -> None:
    logits = torch.zeros(1, 2, 1, 3, dtype=torch.float32)
    logits[0, 0, 0, 0] = 200.0  # a probability of 1
    logits.requires_grad_()
    pixel_loss(logits, torch.tensor([[[0, 1, IGNORED]]]), focal_gamma=gamma).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[..., 1].abs().sum() > 0
    assert logits.grad[..., 2].abs().sum() == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_weights": "1,2"}, "2 class_weights for 4 classes: give one for each"),
        ({"focal_gamma": "-1"}, r"focal_gamma is -1\.0, but must be 0 or more"),
        ({"ignore_index": "256"}, "ignore_index is 256, but must be a label from 0 to 255, or null"),
    ],
)
def test_fields_of_the_loss_are_checked(data: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        SegmentationTask(override(config_of(data), fields))
