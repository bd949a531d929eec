"""Tests class weights, the number of classes from the data, and the requirements of Mixup and CutMix."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xcit.config import override
from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.training.engine.config import RunConfig
from xcit.training.engine.task import Layout
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask, weighted_cross_entropy

WEIGHTS = (0.5, 2.0, 1.25)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def config(tmp_path: Path) -> ClassificationConfig:
    for shade, name in ((40, "dark"), (128, "grey"), (220, "light")):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (8, 8), (shade + index,) * 3).save(tmp_path / split / name / f"{index}.png")
    return ClassificationConfig(
        name="shades",
        model=XCiTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3),
        preprocessing=Preprocessing(image_size=8, resize_to=8),
        data=str(tmp_path),
        augmentation=AugmentationConfig(crop="padded"),
        run=RunConfig(batch_size=6, num_workers=0),
    )


# Class weights


def test_hard_labels_are_weighted_as_torch_does() -> None:
    logits, labels = draw(6, 3).double(), torch.tensor([0, 1, 2, 1, 1, 0])
    weights = torch.tensor(WEIGHTS)
    found = weighted_cross_entropy(logits, F.one_hot(labels, 3), weights)
    expected = F.cross_entropy(logits, labels, weight=weights.double())
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_soft_labels_are_weighted_by_the_formula() -> None:
    logits = draw(4, 3)
    targets = draw(4, 3).softmax(dim=1)
    logs = logits.double().log_softmax(dim=1)
    above = below = 0.0
    for i in range(4):
        for c in range(3):
            above += WEIGHTS[c] * targets[i, c].item() * logs[i, c].item()
            below += WEIGHTS[c] * targets[i, c].item()
    found = weighted_cross_entropy(logits, targets, torch.tensor(WEIGHTS))
    assert found.item() == pytest.approx(-above / below, rel=1e-6)


def test_equal_weights_are_none() -> None:
    logits, targets = draw(4, 3), draw(4, 3).softmax(dim=1)
    found = weighted_cross_entropy(logits, targets, torch.full((3,), 7.0))
    assert found.item() == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_task_weighs_its_classes(config: ClassificationConfig, smoothing: float) -> None:
    augmentation = replace(config.augmentation, label_smoothing=smoothing)
    task = ClassificationTask(replace(config, class_weights=WEIGHTS, augmentation=augmentation))
    logits, labels = draw(6, 3), torch.tensor([0, 1, 2, 1, 1, 0])
    targets = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    found = task.loss(nn.Identity(), (logits, labels))
    assert set(found) == {"loss"}
    expected = weighted_cross_entropy(logits, targets, torch.tensor(WEIGHTS))
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    if not smoothing:
        hard = F.cross_entropy(logits, labels, weight=torch.tensor(WEIGHTS))
        assert found["loss"].item() == pytest.approx(hard.item(), rel=1e-6)


def test_mixed_labels_are_weighted(config: ClassificationConfig) -> None:
    augmentation = replace(config.augmentation, mixup=0.8, label_smoothing=0.1)
    task = ClassificationTask(replace(config, class_weights=WEIGHTS, augmentation=augmentation))
    assert task._mixing is not None
    mixing, mixed = task._mixing, []

    def remember(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed.append(mixing(images, labels))
        return mixed[-1]

    task._mixing = remember
    logits = draw(6, 3)

    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits

    found = task.loss(Fixed(), (draw(6, 3, 8, 8), torch.tensor([0, 1, 2, 1, 1, 0])))["loss"]
    expected = weighted_cross_entropy(logits, mixed[0][1], torch.tensor(WEIGHTS))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": "1,2"}, "^2 class_weights for 3 classes: give one for each$"),
        ({"class_weights": "1,2,0"}, r"class_weights are 1\.0, 2\.0, 0\.0, but must be above 0"),
        ({"class_weights": "1,2,.inf"}, r"class_weights are .*, but must be above 0"),
        ({"shuffle_buffer": "0"}, "shuffle_buffer is 0, but must be at least 1"),
        ({"holdout": "3", "val_data": "x"}, "give holdout or val_data, not both"),
    ],
)
def test_fields_are_checked_before_anything_is_opened(
    config: ClassificationConfig, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(XCiTError, match=message):
        override(config, changes)


# The number of classes


def test_the_data_tell_the_number_of_classes_where_the_model_leaves_it_open(config: ClassificationConfig) -> None:
    left_open = override(config, {"model.num_classes": "0", "class_weights": "0.5,2,1.25"})
    task = ClassificationTask(left_open)
    assert task.config == replace(config, class_weights=WEIGHTS)
    assert task.model(draw(1, 3, 8, 8)).shape == (1, 3)
    assert task.evaluate(task.model)["top5"] == 100
    with pytest.raises(XCiTError, match="2 class_weights for 3 classes"):
        ClassificationTask(override(left_open, {"class_weights": "1,2"}))
    with pytest.raises(XCiTError, match=r"has 3 classes, the model has 4: set model\.num_classes to 3"):
        ClassificationTask(override(left_open, {"model.num_classes": "4", "class_weights": "[]"}))


# Mixing


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_an_odd_number_of_images_is_refused(config: ClassificationConfig, changes: dict[str, Any]) -> None:
    mixed = replace(config, augmentation=replace(config.augmentation, **changes))
    ClassificationTask(mixed)
    with pytest.raises(XCiTError, match="mixup and cutmix need an even number of images at a time, not 3"):
        ClassificationTask(mixed, Layout(batch_size=6, accumulation=2))
