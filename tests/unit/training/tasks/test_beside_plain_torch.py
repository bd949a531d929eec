"""Compares training, for each loss, with a plain PyTorch loop: losses and weights must agree within 1e-6."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xcit.data.detection_transforms import DetectionAugmentation
from xcit.data.segmentation_transforms import SegmentationAugmentation
from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing
from xcit.models import SegmenterConfig, XCiT, XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.info import ModelInfo
from xcit.seeding import seed_all
from xcit.training.engine.config import EngineConfig, OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import read_log
from xcit.training.engine.loop import train_task
from xcit.training.engine.task import Layout
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.training.tasks.detection import DetectionConfig, DetectionTask
from xcit.training.tasks.distillation import DistillationConfig
from xcit.training.tasks.labelled_features import LabelledFeatures
from xcit.training.tasks.linear_probe import LinearConfig, LinearTask
from xcit.training.tasks.multi_label import MultiLabelConfig, MultiLabelTask
from xcit.training.tasks.segmentation import SegmentationConfig, SegmentationTask
from xcit.zoo import save_model

NUM_EPOCHS, LR = 3, 1e-2
RUN = RunConfig(batch_size=4, num_workers=0, log_every=1, evaluate_every=NUM_EPOCHS)
STEADY: dict[str, Any] = {
    # SGD, because AdamW would turn rounding errors of zero gradients into full steps.
    "optimizer": OptimizerConfig(kind="sgd", lr=LR, momentum=0.9, weight_decay=0.0),
    "schedule": ScheduleConfig(epochs=NUM_EPOCHS, warmup_epochs=0, min_lr=LR),
    "run": RUN,
}
SPEC = Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3)
SHAPE = XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
DENSE = XCiTConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2, cls_depth=0, num_classes=0, global_pool="none")


def assert_same_training(task: Any, config: Any, folder: Path, plain_loss: Callable[[nn.Module, Any], Tensor]) -> None:
    """Trains a task, trains a copy of its model by a plain SGD loop, and compares all losses and weights."""
    model, start = copy.deepcopy(task.model).train(), copy.deepcopy(task.model.state_dict())
    folder.mkdir(exist_ok=True)
    train_task(task, Processes(config.run, torch.device("cpu")), config, folder)
    expected = list[float]()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for epoch in range(NUM_EPOCHS):
        for batch in task.train_batches(epoch, 0):
            seed_all(config.run.seed, len(expected), 0)  # a detector draws training regions at random
            loss = plain_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    found = [line["loss"] for line in read_log(folder / "log.jsonl") if line["kind"] == "step"]
    assert len(found) == NUM_EPOCHS * task.num_steps > NUM_EPOCHS
    assert found == pytest.approx(expected, rel=1e-6)
    ours, theirs = task.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    moved = 0.0
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).float().norm() <= 1e-6 * max(tensor.float().norm().item(), 1.0), name
        moved = max(moved, (tensor - start[name]).float().norm().item())
    assert moved > 1e-3


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes noisy pictures in three colours: as class folders, with a list of labels, label maps, and boxes."""
    root, draw = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        images, annotations, lines = [], [], ["image,labels"]
        for folder in (f"scenes/images/{split}", f"scenes/labels/{split}", f"coco/{split}"):
            (root / folder).mkdir(parents=True)
        for label, name in enumerate(("blue", "green", "red")):
            (root / "folders" / split / name).mkdir(parents=True)
            for index in range(count):
                number = label * count + index
                pixels = draw.integers(0, 120, (48, 48, 3), dtype=np.uint8)
                labels = np.zeros((48, 48), np.uint8)
                top, left = (int(value) for value in draw.integers(0, 24, 2))
                pixels[top : top + 20, left : left + 20, label] = 255
                labels[top : top + 20, left : left + 20] = label + 1
                labels[:, 0] = 255
                places = [
                    f"folders/{split}/{name}/{index}",
                    f"scenes/images/{split}/{number}",
                    f"coco/{split}/{number}",
                ]
                for place in places:
                    Image.fromarray(pixels).save(root / f"{place}.png")
                Image.fromarray(labels).save(root / f"scenes/labels/{split}/{number}.png")
                lines.append(f"{places[0]}.png,{' '.join([name, 'even'] if index % 2 == 0 else [name])}")
                images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 48})
                annotations.append(
                    {"id": number + 1, "image_id": number, "category_id": label + 1, "bbox": [left, top, 20, 20]}
                    | {"area": 400, "iscrowd": 0, "segmentation": [[left, top, left + 20, top, left + 20, top + 20]]}
                )
        (root / f"{split}.csv").write_text("\n".join(lines))
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(("blue", "green", "red"))]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (root / "coco" / f"{split}.json").write_text(json.dumps(content))
    (root / "scenes" / "classes.txt").write_text("ground\nblue\ngreen\nred\n")
    return root


def test_class_weights_of_classification(squares: Path, tmp_path: Path) -> None:
    weights = (1.0, 5.0, 0.5)
    config = ClassificationConfig(
        name="c", model=SHAPE, preprocessing=SPEC, data=str(squares / "folders"), class_weights=weights, **STEADY
    )

    def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor(weights))

    assert_same_training(ClassificationTask(config), config, tmp_path, plain)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_distillation(squares: Path, tmp_path: Path, temperature: float) -> None:
    torch.manual_seed(1)
    teacher = XCiT(SHAPE)
    teacher.info = ModelInfo(name="t", preprocessing=SPEC, class_names=("blue", "green", "red"))
    save_model(teacher.eval(), tmp_path / "teacher.safetensors")
    config = ClassificationConfig(
        name="d",
        model=SHAPE,
        preprocessing=SPEC,
        data=str(squares / "folders"),
        distillation=DistillationConfig(
            teacher=str(tmp_path / "teacher.safetensors"), kind="soft", alpha=0.3, temperature=temperature
        ),
        **STEADY,
    )

    def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model(batch[0])
        with torch.no_grad():
            said = (teacher(batch[0]) / temperature).log_softmax(dim=1)
        own = (logits / temperature).log_softmax(dim=1)
        # The authors' formula: the sum over images and classes, divided by the number of (image, class) pairs.
        distance = (said.exp() * (said - own)).sum() * temperature**2 / (4 * 3)
        return 0.7 * F.cross_entropy(logits, batch[1]) + 0.3 * distance

    assert_same_training(ClassificationTask(config), config, tmp_path, plain)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_binary_loss_of_several_classes(squares: Path, tmp_path: Path, weighted: bool) -> None:
    weights, positive = ((1.0, 2.0, 3.0, 0.5), (4.0, 1.0, 1.0, 0.2)) if weighted else ((), ())
    config = MultiLabelConfig(
        name="m",
        model=XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0),
        preprocessing=SPEC,
        data=str(squares),
        class_weights=weights,
        positive_weights=positive,
        **STEADY,
    )
    task = MultiLabelTask(config)
    assert task.info.class_names == ("blue", "even", "green", "red")

    def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        assert targets.sum(dim=1).min() >= 1
        logits = model(images)
        is_of = torch.tensor(positive or (1.0,) * 4) * targets * F.logsigmoid(logits)
        is_not = (1 - targets) * F.logsigmoid(-logits)
        return -(torch.tensor(weights or (1.0,) * 4) * (is_of + is_not)).mean()

    assert_same_training(task, config, tmp_path, plain)


def plain_pixels(logits: Tensor, labels: Tensor, *, weights: Tensor, gamma: float, ignored: int | None) -> Tensor:
    """Returns the sum of weight * (1 - p)^gamma * (-log p) over labelled pixels, divided by the number of pixels."""
    probabilities = logits.softmax(dim=1).movedim(1, 3)[labels != 255]
    true = labels[labels != 255].long()
    assert ignored is None or ignored not in true
    own = probabilities[torch.arange(len(true)), true]
    return (weights[true] * (1 - own) ** gamma * -own.log()).sum() / labels.numel()


@pytest.mark.parametrize(
    ("weights", "gamma", "ignored"),
    [((1.0, 4.0, 2.0, 0.5), 0.0, None), ((), 2.0, None), ((), 0.5, None), ((1.0, 4.0, 2.0, 0.5), 2.0, 0), ((), 0.0, 2)],
)
def test_losses_of_segmentation(
    squares: Path, tmp_path: Path, weights: tuple[float, ...], gamma: float, ignored: int | None
) -> None:
    config = SegmentationConfig(
        name="s",
        model=SegmenterConfig(
            kind="upernet",
            backbone=DENSE,
            num_classes=0,
            channels=8,
            auxiliary_channels=8,
            dropout=0.0,
            out_indices=(0, 0, 0, 0),
        ),
        preprocessing=SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.4,) * 3, std=(0.3,) * 3),
        data=str(squares / "scenes"),
        class_weights=weights,
        focal_gamma=gamma,
        ignore_index=ignored,
        augmentation=SegmentationAugmentation(crop_size=32),
        **STEADY,
    )

    def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        output = model(images, with_auxiliary=True)
        how: dict[str, Any] = {"weights": torch.tensor(weights or (1.0,) * 4), "gamma": gamma, "ignored": ignored}
        return plain_pixels(output.logits, labels, **how) + 0.4 * plain_pixels(output.auxiliary, labels, **how)

    assert_same_training(SegmentationTask(config), config, tmp_path, plain)


def test_class_weights_of_detection(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (3.0, 1.0, 0.25)
    config = DetectionConfig(
        name="b",
        model=MaskRCNNConfig(
            backbone=DENSE, num_classes=0, channels=8, box_features=16, anchor_scale=4.0, short_side=48, long_side=48
        ),
        data=str(squares / "coco"),
        class_weights=weights,
        augmentation=DetectionAugmentation(short_sides=(48,), long_side=48, crop=0.0),
        **STEADY,
    )
    task = DetectionTask(config)
    seen = list[tuple[Tensor, Tensor]]()
    computed = F.cross_entropy

    def spy(logits: Tensor, labels: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append((logits, labels))
        return computed(logits, labels, *rest, **more)

    def plain(model: nn.Module, batch: Any) -> Tensor:
        images, *objects = batch
        targets = [dict(zip(("boxes", "labels", "masks"), own, strict=True)) for own in zip(*objects, strict=True)]
        with monkeypatch.context() as patch:
            patch.setattr(F, "cross_entropy", spy)
            losses = model(images, targets)
        logits, labels = seen.pop()
        rows = torch.arange(len(labels))
        terms = torch.tensor([*weights, 1.0])[labels] * -logits.log_softmax(dim=1)[rows, labels]
        return sum(value for name, value in losses.items() if name != "loss_classifier") + terms.sum() / len(labels)

    assert_same_training(task, config, tmp_path, plain)
    assert not any("class_weights" in name for name in task.model.state_dict())


def test_class_weights_of_a_linear_probe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = XCiT(SHAPE)
    config = LinearConfig(
        name="l",
        backbone="",
        data="",
        augmented=False,
        lrs=(0.1,),
        epochs=NUM_EPOCHS,
        class_weights=(1.0, 0.2, 7.0),
        run=RUN,
    )
    features = LabelledFeatures(features=torch.randn(12, 16), labels=torch.arange(12) % 3)
    info = ModelInfo(name="l", preprocessing=SPEC, class_names=("a", "b", "c"))
    task = LinearTask(config, backbone, backbone, info, features, features, Layout(batch_size=4))

    def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0])[:, 0], batch[1], weight=torch.tensor(config.class_weights))

    steady = EngineConfig(optimizer=STEADY["optimizer"], schedule=STEADY["schedule"], run=RUN)
    assert_same_training(task, steady, tmp_path, plain)
