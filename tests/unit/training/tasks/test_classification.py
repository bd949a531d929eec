"""Tests the classification task: its figures (against a simple count), its parts and its errors."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.classification import ImageFiles
from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.training.engine.config import RunConfig
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask, evaluate_classification
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.zoo import load_file

SPEC = Preprocessing(image_size=8, resize_to=8)
NUM_IMAGES = 23


class Numbered:
    """Grey images of which each has a different grey value, so that a model can look up the logits of an image."""

    def __init__(self, labels: list[int], num_classes: int) -> None:
        self.labels, self.num_classes = labels, num_classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.num_classes)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (8, 8), (index, index, index)), self.labels[index]

    def image_name(self, index: int) -> str:
        return f"image {index}"


class Lookup(nn.Module):
    """A model that returns the stored logits of each image, which it recognises by the grey value."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        mean, std = SPEC.mean[0], SPEC.std[0]
        indices = ((images[:, 0, 0, 0].float() * std + mean) * 255).round().long()
        return self.logits[indices]


@pytest.mark.parametrize("num_classes", [3, 12])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_figures_equal_a_naive_count(num_classes: int, batch_size: int) -> None:
    draw = np.random.default_rng(num_classes)
    labels = draw.integers(0, num_classes, NUM_IMAGES).tolist()
    logits = draw.normal(size=(NUM_IMAGES, num_classes)).astype(np.float32)
    seen: list[int] = []
    found = evaluate_classification(
        Lookup(torch.from_numpy(logits)),
        Numbered(labels, num_classes),
        SPEC,
        EvaluationConfig(batch_size=batch_size),
        num_classes=num_classes,
        report=seen.append,
    )

    num_right1 = num_right5 = 0
    loss = 0.0
    confusion = [[0] * num_classes for _ in range(num_classes)]
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        ranked = sorted(range(num_classes), key=lambda c: -row[c])
        num_right1 += ranked[0] == label
        num_right5 += label in ranked[:5]
        loss += math.log(sum(math.exp(value) for value in row)) - row[label]
        confusion[label][ranked[0]] += 1
    assert found.num_images == sum(seen) == NUM_IMAGES
    assert found.top1 == 100 * num_right1 / NUM_IMAGES
    assert found.top5 == 100 * num_right5 / NUM_IMAGES
    assert found.loss == pytest.approx(loss / NUM_IMAGES, rel=1e-6)
    assert found.confusion.tolist() == confusion
    assert found.unreadable == ()
    assert found.figures() == {"top1": found.top1, "top5": found.top5, "val_loss": found.loss}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_evaluation_mode_and_left_as_it_was(training: bool) -> None:
    model = Lookup(torch.eye(3))
    model.train(training)
    evaluate_classification(model, Numbered([0, 1, 2], 3), SPEC, num_classes=3)
    assert model.modes == [False]
    assert model.training is training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_of_the_forward_pass(dtype: torch.dtype) -> None:
    class Spy(Lookup):
        def forward(self, images: Tensor) -> Tensor:
            self.dtype = torch.mm(self.logits, self.logits).dtype
            return super().forward(images)

    model = Spy(torch.eye(3))
    found = evaluate_classification(model, Numbered([0, 1, 1], 3), SPEC, EvaluationConfig(dtype=dtype), num_classes=3)
    assert model.dtype == dtype
    assert found.top1 == pytest.approx(200 / 3)


def test_unreadable_images_are_named_and_not_counted(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("0.png", "broken.png", "1.png")]
    for index, path in enumerate(paths):
        Image.new("RGB", (8, 8), (index // 2,) * 3).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    images = ImageFiles([(paths[0], 0), (paths[1], 0), (paths[2], 1)], ("a", "b"))
    seen: list[int] = []
    found = evaluate_classification(Lookup(torch.eye(2)), images, SPEC, num_classes=2, report=seen.append)
    assert (found.num_images, found.top1, sum(seen)) == (2, 100.0, 3)
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith(f"{paths[1]}: ")
    with pytest.raises(XCiTError, match=r"none of the 1 images could be read; the first: .*broken\.png"):
        evaluate_classification(Lookup(torch.eye(2)), ImageFiles([(paths[1], 0)], ("a",)), SPEC, num_classes=2)


# The task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes two classes with 6 training images and 2 validation images each."""
    for split, count in (("train", 6), ("val", 2)):
        for shade, name in ((40, "dark"), (220, "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (shade + index,) * 3).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def config_of(data: Path | str, **changes: Any) -> ClassificationConfig:
    fields: dict[str, Any] = {
        "name": "shades",
        "model": XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=2, drop_path_rate=0.5),
        "preprocessing": Preprocessing(image_size=16, resize_to=16),
        "data": str(data),
        "augmentation": AugmentationConfig(crop="padded"),
        "run": RunConfig(batch_size=4, num_workers=0),
    }
    return ClassificationConfig(**(fields | changes))


def test_wires_folders_to_batches_and_figures(folder: Path) -> None:
    task: Any = ClassificationTask(config_of(folder))
    batches = list(task.train_batches(0))
    assert len(batches) == task.num_steps == 3
    images, labels = batches[0]
    assert (images.shape, labels.shape) == ((4, 3, 16, 16), (4,))
    figures = task.evaluate(task.model)
    assert set(figures) == {"top1", "top5", "val_loss"}
    assert figures["top5"] == 100
    assert len(task.watched) == 4


def test_the_same_seed_starts_with_the_same_weights(folder: Path) -> None:
    states = [
        ClassificationTask(config_of(folder, run=RunConfig(batch_size=4, num_workers=0, seed=seed))).model.state_dict()
        for seed in (1, 1, 2)
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["cls_token"], states[2]["cls_token"])


def test_held_out_images_are_not_trained_on(folder: Path) -> None:
    task: Any = ClassificationTask(
        config_of(folder / "train", holdout=3, augmentation=AugmentationConfig(crop="padded", padding=0))
    )
    watched = {task.watched.image_name(index) for index in range(3)}
    assert len(task.watched) == len(watched) == 3
    assert all("/train/" in name for name in watched)
    trained = torch.cat([images for epoch in range(4) for images, _ in task.train_batches(epoch)])
    values = {round(value, 4) for value in trained[:, 0, 0, 0].tolist()}
    assert len(values) == 9
    held_out = {np.asarray(task.watched[index][0])[0, 0, 0] for index in range(3)}
    normalised = {round((value / 255 - 0.485) / 0.229, 4) for value in map(float, held_out)}
    assert not values & normalised
    # Another seed selects the same images.
    again: Any = ClassificationTask(
        config_of(folder / "train", holdout=3, run=RunConfig(batch_size=4, num_workers=0, seed=9))
    )
    assert {again.watched.image_name(index) for index in range(3)} == watched


def test_loss_is_cross_entropy_against_smoothed_labels(folder: Path) -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    labels = torch.tensor([0, 1])
    logs = logits.double().log_softmax(dim=1)
    for smoothing in (0.0, 0.1):
        task = ClassificationTask(config_of(folder, augmentation=AugmentationConfig(label_smoothing=smoothing)))
        targets = torch.full((2, 2), smoothing / 2)
        targets[[0, 1], labels] += 1 - smoothing
        found = task.loss(nn.Identity(), (logits, labels))["loss"]
        assert found.item() == pytest.approx(-(targets * logs).sum(dim=1).mean().item(), rel=1e-6)


def test_mixed_images_get_mixed_labels(folder: Path) -> None:
    task = ClassificationTask(config_of(folder, augmentation=AugmentationConfig(mixup=0.8, cutmix=1.0)))
    images = torch.stack([torch.full((3, 16, 16), float(label)) for label in (0, 1, 0, 1)])

    class Spy(nn.Module):
        def forward(self, mixed: Tensor) -> Tensor:
            self.share = mixed.mean(dim=(1, 2, 3))
            self.logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
            return self.logits

    model = Spy()
    np.random.seed(0)
    mixed = 0
    for _ in range(8):
        loss = task.loss(model, (images.clone(), torch.tensor([0, 1, 0, 1])))["loss"]
        # The mean of a mixed image is its share of class 1.
        targets = torch.stack([1 - model.share, model.share], dim=1)
        assert loss.item() == pytest.approx(-(targets * model.logits.log_softmax(1)).sum(1).mean().item(), rel=1e-4)
        mixed += bool(((model.share > 0.01) & (model.share < 0.99)).any())
    assert mixed >= 4


def test_the_export_is_a_model_that_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    task = ClassificationTask(config)
    task.export(task.model, tmp_path / "model.safetensors")
    model = load_file(tmp_path / "model.safetensors")
    assert model.config == replace(config.model, drop_path_rate=0.0)
    assert model.info == ModelInfo(
        name="shades", preprocessing=config.preprocessing, class_names=("dark", "light"), class_ids=()
    )
    assert isinstance(task.model, XCiT)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), task.model.eval()(images))


def _other_classes(folder: Path) -> ClassificationConfig:
    (folder / "val" / "light").rename(folder / "val" / "bright")
    return config_of(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda _: config_of(""), "shades has no data of its own: set data to a folder of images by class"),
        (lambda folder: config_of(folder / "no"), "no: no such folder"),
        (
            lambda folder: config_of(folder, model=XCiTConfig(num_classes=5)),
            "has 2 classes, the model has 5: set model.num_classes to 2",
        ),
        (_other_classes, "the training and the validation images have different classes"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, config: Callable[[Path], ClassificationConfig], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        ClassificationTask(config(folder))
