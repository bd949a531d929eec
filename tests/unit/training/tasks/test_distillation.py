"""Compares the distillation loss with the formulas; tests the sources of teachers, and teachers that are refused."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.config import from_dict
from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.training.engine.config import RunConfig
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.training.tasks.distillation import DistillationConfig, Teacher, check_teacher, load_teacher
from xcit.zoo import save_model

SHAPE = XCiTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, drop_path_rate=0.5)
SPEC = Preprocessing(image_size=8, resize_to=8)
OTHER = Preprocessing(image_size=8, resize_to=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.5, 1.0))
CLASSES = ("bird", "cat", "dog")
PACKAGED = "xcit-pico-fashion-mnist"


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Fixed(nn.Module):
    """A model that returns the same logits for any images, and stores its input and mode."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        self.seen, self.was_training, self.had_grad = images, self.training, torch.is_grad_enabled()
        return self.logits[: len(images)]


def teacher_of(model: nn.Module, own: Preprocessing = SPEC, **changes: Any) -> Teacher:
    return Teacher(model, DistillationConfig(teacher="x", **changes), own=own, given=SPEC)


# The loss


def test_hard_is_cross_entropy_against_the_teacher_s_first_class() -> None:
    logits, said = draw(4, 3), draw(4, 3, seed=1)
    expected = 0.0
    for row, its in zip(logits.tolist(), said.tolist(), strict=True):
        first = max(range(3), key=lambda c: its[c])
        expected += math.log(sum(math.exp(value) for value in row)) - row[first]
    found = teacher_of(Fixed(said), kind="hard").loss(draw(4, 3, 8, 8), logits)
    assert found.item() == pytest.approx(expected / 4, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_is_the_divergence_at_a_temperature(temperature: float) -> None:
    logits, said = draw(4, 3), draw(4, 3, seed=1)
    expected = 0.0
    for row, its in zip(logits.tolist(), said.tolist(), strict=True):
        mine, theirs = ([math.exp(value / temperature) for value in numbers] for numbers in (row, its))
        q, p = ([value / sum(numbers) for value in numbers] for numbers in (mine, theirs))
        expected += temperature**2 * sum(p[c] * math.log(p[c] / q[c]) for c in range(3))
    teacher = teacher_of(Fixed(said), kind="soft", temperature=temperature)
    # As in the authors' code, the loss is the mean over images and classes.
    assert teacher.loss(draw(4, 3, 8, 8), logits).item() == pytest.approx(expected / (4 * 3), rel=1e-5)
    assert teacher.loss(draw(4, 3, 8, 8), said).item() == pytest.approx(0, abs=1e-6)


def test_by_itself_soft_is_at_the_authors_temperature() -> None:
    assert DistillationConfig().temperature == 1


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_student_learns_and_the_teacher_does_not(kind: str) -> None:
    model = Fixed(draw(4, 3, seed=1)).train()
    logits = draw(4, 3).requires_grad_()
    teacher_of(model, kind=kind).loss(draw(4, 3, 8, 8), logits).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert model.logits.grad is None
    assert (model.was_training, model.had_grad) == (False, False)


def test_logits_of_16_bits_are_compared_in_32() -> None:
    loss = teacher_of(Fixed(draw(4, 3, seed=1).bfloat16()), kind="soft").loss(draw(4, 3, 8, 8), draw(4, 3).bfloat16())
    assert loss.dtype == torch.float32


def test_the_teacher_sees_images_in_its_own_normalisation() -> None:
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std, other_mean, other_std = (
        torch.tensor(numbers)[:, None, None] for numbers in (SPEC.mean, SPEC.std, OTHER.mean, OTHER.std)
    )
    model = Fixed(draw(2, 3))
    teacher_of(model, own=OTHER).logits((pixels - mean) / std)
    torch.testing.assert_close(model.seen, (pixels - other_mean) / other_std)
    images = (pixels - mean) / std
    teacher_of(model).logits(images)
    assert model.seen is images


# Where a teacher comes from


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Writes a teacher's file."""
    torch.manual_seed(1)
    model = XCiT(SHAPE)
    model.info = ModelInfo(name="teacher", preprocessing=OTHER, class_names=CLASSES)
    save_model(model, tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_a_file_s_model_teaches(file: Path) -> None:
    teacher = load_teacher(DistillationConfig(teacher=str(file)), SPEC, num_classes=3, class_ids=CLASSES)
    assert isinstance(teacher.model, XCiT)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    pixels = torch.rand(2, 3, 8, 8)
    ours, its = (
        (pixels - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
        for spec in (SPEC, OTHER)
    )
    torch.testing.assert_close(teacher.logits(ours), teacher.model(its))


def test_a_file_that_says_nothing_is_in_imagenet_s_normalisation(tmp_path: Path) -> None:
    from timm.models.xcit import xcit_nano_12_p16_224

    torch.save(xcit_nano_12_p16_224(num_classes=3).state_dict(), tmp_path / "timm.pth")
    spec = replace(OTHER, image_size=16)
    teacher = load_teacher(DistillationConfig(teacher=str(tmp_path / "timm.pth")), spec, num_classes=3)
    images = draw(1, 3, 16, 16)
    moved = images * torch.tensor(spec.std)[:, None, None] + torch.tensor(spec.mean)[:, None, None]
    moved = (moved - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None]
    torch.testing.assert_close(teacher.logits(images), teacher.model(moved), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_teaches_by_its_name() -> None:
    spec = Preprocessing(image_size=28, resize_to=28, mean=(0.5,), std=(0.5,))
    teacher = load_teacher(DistillationConfig(teacher=PACKAGED), spec, num_classes=10)
    assert teacher.logits(draw(2, 1, 28, 28)).shape == (2, 10)


@pytest.fixture
def timms(tmp_path: Path) -> Iterator[str]:
    """Yields the name of a pretrained timm model with three classes; its weights are in a local file."""
    import timm
    from timm.models import _registry

    name = "test_resnet.r160_in1k"
    torch.manual_seed(3)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "timm.pth")
    known: Any = timm.models.get_pretrained_cfg(name)
    changed = replace(known, file=str(tmp_path / "timm.pth"), num_classes=3, label_names=CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_registry._model_pretrained_cfgs, name, changed)
        yield f"timm/{name}"


def test_timm_s_model_teaches(timms: str, tmp_path: Path) -> None:
    import timm

    teacher = load_teacher(DistillationConfig(teacher=timms), SPEC, num_classes=3, class_ids=CLASSES)
    theirs = timm.create_model("test_resnet", num_classes=3).eval()
    theirs.load_state_dict(torch.load(tmp_path / "timm.pth"))
    pixels = torch.rand(2, 3, 32, 32)
    images = (pixels - torch.tensor(SPEC.mean)[:, None, None]) / torch.tensor(SPEC.std)[:, None, None]
    torch.testing.assert_close(teacher.logits(images), theirs((pixels - 0.5) / 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "num_classes", "message"),
    [
        (
            "timm/regnety_160.deit_in1",
            1000,
            r"timm has no pretrained model .*; did you mean 'timm/regnety_160\.deit_in1k'",
        ),
        ("timm/@", 1000, r"timm has no pretrained model '@'; timm\.list_models\(pretrained=True\) lists all"),
        ("timm/regnety_160.deit_in1k", 37, r"regnety_160\.deit_in1k has 1000 classes, but this run has 37"),
        ("xcit-nano-12-p16_3rdparty_in1k", 37, r"has 1000 classes, but this run has 37"),
        ("timm/xcit_nano_12_p16_224.fb_in1k", 37, r"has 1000 classes, but this run has 37"),
        (PACKAGED, 10, r"accepts images with 1 channels, but this run's images have 3"),
        ("nowhere.pth", 3, r"nowhere\.pth: no such file"),
        ("xcit-nano-12-p16_3rdparty_in2k", 1000, r"no model is called .*; did you mean 'xcit-nano-12"),
    ],
)
def test_a_teacher_that_can_t_be_is_found_at_once(teacher: str, num_classes: int, message: str) -> None:
    with pytest.raises(XCiTError, match=rf"^distillation\.teacher: .*{message}"):
        check_teacher(DistillationConfig(teacher=teacher), SPEC, num_classes)


@pytest.mark.parametrize("teacher", ["", "timm/regnety_160.deit_in1k", "timm/xcit_nano_12_p16_224.fb_in1k"])
def test_teachers_that_can_be_are_let_through_unloaded(teacher: str) -> None:
    for num_classes in (0, 1000):  # 0: not yet known
        check_teacher(DistillationConfig(teacher=teacher), SPEC, num_classes)


def test_without_a_network_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Hub's client reads HF_HUB_OFFLINE only when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        XCiTError, match=r"^distillation\.teacher: timm/test_vit\.r160_in1k can't be loaded: "
    ) as caught:
        load_teacher(DistillationConfig(teacher="timm/test_vit.r160_in1k"), SPEC, num_classes=1000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("class_ids", [("cat", "bird", "dog"), ("bird", "cat", "fish")])
def test_other_classes_or_another_order_are_refused(file: Path, timms: str, class_ids: tuple[str, ...]) -> None:
    for teacher in (str(file), timms):
        with pytest.raises(
            XCiTError, match=r"have a different order: the teacher has 'bird', 'cat', 'dog', but the data have '"
        ):
            load_teacher(DistillationConfig(teacher=teacher), SPEC, num_classes=3, class_ids=class_ids)
        for unknown in ((), ("0", "1", "2")):  # the data do not contain it
            load_teacher(DistillationConfig(teacher=teacher), SPEC, num_classes=3, class_ids=unknown)


def test_a_file_of_another_number_of_classes_is_refused(file: Path) -> None:
    with pytest.raises(XCiTError, match=r"gives 3 numbers per image, the data have 4 classes"):
        load_teacher(DistillationConfig(teacher=str(file)), SPEC, num_classes=4)


def test_images_that_a_teacher_can_t_take_are_refused_before_training(file: Path) -> None:
    with pytest.raises(
        XCiTError, match=r"does not accept images of 2x2 pixels: images are 2x2 pixels, smaller than one patch"
    ):
        load_teacher(DistillationConfig(teacher=str(file)), replace(SPEC, image_size=2), num_classes=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "harder"}, "kind must be one of hard, soft, not 'harder'"),
        ({"alpha": 1.5}, r"alpha is 1\.5, but must be in 0\.\.1"),
        ({"temperature": 0}, r"temperature is 0\.0, but must be above 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        from_dict(DistillationConfig, fields)


# In a task


@pytest.fixture
def config(file: Path, tmp_path: Path) -> ClassificationConfig:
    for split in ("train", "val"):
        for shade, name in enumerate(CLASSES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (8, 8), (100 * shade + index,) * 3).save(
                    tmp_path / "data" / split / name / f"{index}.png"
                )
    return ClassificationConfig(
        name="student",
        model=SHAPE,
        preprocessing=SPEC,
        data=str(tmp_path / "data"),
        augmentation=AugmentationConfig(crop="padded"),
        distillation=DistillationConfig(teacher=str(file), alpha=0.25),
        run=RunConfig(batch_size=6, num_workers=0),
    )


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_is_the_labels_and_the_teacher_s(config: ClassificationConfig, file: Path, kind: Any) -> None:
    config = replace(config, distillation=replace(config.distillation, kind=kind))
    task = ClassificationTask(config)
    alone = ClassificationTask(replace(config, distillation=DistillationConfig()))
    teacher = load_teacher(config.distillation, SPEC, num_classes=3)
    images, labels = next(iter(task.train_batches(0)))
    student = Fixed(draw(6, 3, seed=5))
    losses = task.loss(student, (images, labels))
    assert set(losses) == {"loss", "label_loss", "teacher_loss"}
    label_loss = alone.loss(student, (images, labels))["loss"].item()
    teacher_loss = teacher.loss(images, student.logits).item()
    assert losses["label_loss"].item() == pytest.approx(label_loss, rel=1e-6)
    assert losses["teacher_loss"].item() == pytest.approx(teacher_loss, rel=1e-6)
    assert losses["loss"].item() == pytest.approx(0.75 * label_loss + 0.25 * teacher_loss, rel=1e-6)
    assert losses["loss"].requires_grad
    assert not losses["label_loss"].requires_grad
    assert not losses["teacher_loss"].requires_grad


def test_the_teacher_is_no_part_of_the_model(config: ClassificationConfig, tmp_path: Path) -> None:
    with_teacher, alone = (
        ClassificationTask(replace(config, distillation=distillation))
        for distillation in (config.distillation, DistillationConfig())
    )
    states = with_teacher.model.state_dict(), alone.model.state_dict()
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with_teacher.model.train()
    assert with_teacher._teacher is not None
    assert not with_teacher._teacher.model.training


def test_the_teacher_sees_the_mixed_images(config: ClassificationConfig) -> None:
    task = ClassificationTask(replace(config, augmentation=AugmentationConfig(crop="padded", mixup=0.8, cutmix=1.0)))
    student, seen = Fixed(draw(6, 3)), Fixed(draw(6, 3, seed=1))
    task._teacher = Teacher(seen, config.distillation, own=SPEC, given=SPEC)
    images, labels = next(iter(task.train_batches(0)))
    np.random.seed(0)
    task.loss(student, (images.clone(), labels))
    assert torch.equal(student.seen, seen.seen)
    assert not torch.equal(seen.seen, images)


def test_the_task_looks_for_the_teacher_before_the_data(config: ClassificationConfig) -> None:
    lost = replace(config, data="no-such-folder", distillation=DistillationConfig(teacher="no.pth"))
    with pytest.raises(XCiTError, match=r"no\.pth: no such file"):
        ClassificationTask(lost)
