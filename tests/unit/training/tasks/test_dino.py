"""Compares DINO's training with its formulas in plain code, and tests the files of a run."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import xcit
from xcit.data.multi_crop import MultiCropConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.models import XCiTConfig
from xcit.models.dino import DINO, DINOHeadConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import read_log
from xcit.training.engine.loop import train_task
from xcit.training.engine.progress import Progress
from xcit.training.engine.task import Layout, StepHooks
from xcit.training.tasks.dino import DINOConfig, DINOTask, TeachingConfig, dino_loss, teacher_probabilities

CPU = torch.device("cpu")
NUM_IMAGES = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes images without classes."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        Image.fromarray(draw.integers(0, 256, (12 + index, 14, 3), dtype=np.uint8)).save(root / f"{index}.png")
    return root


def config_of(data: Path | str, **changes: Any) -> DINOConfig:
    config = DINOConfig(
        name="dino-test",
        model=XCiTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2, cls_depth=1, num_classes=0),
        preprocessing=Preprocessing(image_size=12, resize_to=12, mean=(0.5,) * 3, std=(0.3,) * 3),
        data=str(data),
        num_watched=7,
        head=DINOHeadConfig(out_dim=10, hidden_dim=8, bottleneck_dim=6),
        crops=MultiCropConfig(num_local=2, local_size=8),
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.04, final_weight_decay=0.4, clip_grad=3.0, clip_mode="each"),
        schedule=ScheduleConfig(epochs=2, warmup_epochs=0),
        run=RunConfig(batch_size=4, num_workers=0, log_every=1),
    )
    return replace(config, **changes)


def run(task: DINOTask, directory: Path, report: Callable[[Progress], None] = lambda _: None) -> dict[str, float]:
    directory.mkdir(exist_ok=True)
    return train_task(
        task,
        Processes(task.config.run, CPU),
        task.config,
        directory,
        report=report,
    )


def model_of(task: DINOTask) -> DINO:
    assert isinstance(task.model, DINO)
    return task.model


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def rows(*shape: int) -> list[list[float]]:
    return torch.randn(*shape, dtype=torch.float64).tolist()


# The formulas


def test_the_loss_is_the_formula() -> None:
    torch.manual_seed(0)
    num_crops, batch, num_outputs = 4, 3, 5
    student, teacher, center = rows(num_crops * batch, num_outputs), rows(2 * batch, num_outputs), rows(1, num_outputs)
    terms = []
    for q in range(2):
        for v in range(num_crops):
            if v == q:
                continue
            of_images = []
            for image in range(batch):
                row = teacher[q * batch + image]
                target = softmax([value - mean for value, mean in zip(row, center[0], strict=True)], 0.04)
                says = softmax(student[v * batch + image], 0.1)
                of_images.append(-sum(t * math.log(s) for t, s in zip(target, says, strict=True)))
            terms.append(sum(of_images) / batch)
    assert len(terms) == 2 * (num_crops - 1)
    given, taught, mean = (torch.tensor(numbers, dtype=torch.float64) for numbers in (student, teacher, center))
    targets = teacher_probabilities(taught, mean, 0.04)
    loss = dino_loss(given, targets, num_crops=num_crops, student_temperature=0.1)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_no_gradient_goes_into_the_targets() -> None:
    assert not teacher_probabilities(torch.randn(2, 3, requires_grad=True), torch.zeros(1, 3), 0.04).requires_grad


@pytest.mark.parametrize(("first", "last", "warmup_epochs"), [(0.04, 0.07, 30), (0.04, 0.04, 0), (0.02, 0.06, 1)])
def test_the_teacher_s_temperature_rises_by_epoch(first: float, last: float, warmup_epochs: int) -> None:
    config = TeachingConfig(first_teacher_temperature=first, teacher_temperature=last, warmup_epochs=warmup_epochs)
    expected = [*np.linspace(first, last, warmup_epochs), *[last] * (50 - warmup_epochs)]
    assert [config.temperature(epoch) for epoch in range(50)] == pytest.approx(expected)


def test_the_teacher_s_momentum_is_a_cosine_to_one() -> None:
    num_steps = 200
    found = [TeachingConfig().momentum(step, num_steps) for step in range(num_steps)]
    expected = [1 + 0.5 * (0.996 - 1) * (1 + math.cos(math.pi * i / num_steps)) for i in range(num_steps)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[0] == 0.996
    assert found == sorted(found)
    assert 0.9999 < found[-1] < 1


def test_the_defaults_are_published() -> None:
    assert TeachingConfig() == TeachingConfig(
        student_temperature=0.1,
        teacher_temperature=0.04,
        first_teacher_temperature=0.04,
        warmup_epochs=0,
        teacher_momentum=0.996,
        center_momentum=0.9,
        freeze_last_layer=1,
    )
    assert DINOHeadConfig() == DINOHeadConfig(out_dim=65536, hidden_dim=2048, bottleneck_dim=256, norm_last_layer=True)


# A step


def test_the_centre_follows_the_teacher_over_all_parts_of_a_step(folder: Path) -> None:
    layout = Layout(batch_size=4, accumulation=2)
    task = DINOTask(config_of(folder, run=RunConfig(batch_size=4, max_device_batch=2, num_workers=0)), layout)
    model = model_of(task).train()
    task.begin_epoch(model, 0)
    center = torch.randn(1, 10)
    model.center.copy_(center)
    batches = task.train_batches(0)
    logits = []
    for _ in range(2):
        crops = next(batches)
        with torch.no_grad():
            logits.append(model(crops).teacher_logits)
        task.loss(model, crops)
    assert torch.equal(model.center, center), "a step has one centre"
    task.after_update(model, 0, lambda tensor: tensor)
    mean = torch.cat(logits).mean(dim=0, keepdim=True)
    assert torch.allclose(model.center, 0.9 * center + 0.1 * mean, atol=1e-6)


def test_the_centre_is_of_all_processes(folder: Path) -> None:
    layout = Layout(batch_size=4, world_size=2)
    task = DINOTask(config_of(folder), layout)
    model = model_of(task).train()
    crops = next(task.train_batches(0))
    assert len(crops[0]) == 2
    with torch.no_grad():
        own = model(crops).teacher_logits
    task.loss(model, crops)
    others = torch.randn(4, 10)
    task.after_update(model, 0, lambda tensor: tensor + others.sum(dim=0, keepdim=True))
    assert torch.allclose(model.center, 0.1 * torch.cat([own, others]).mean(dim=0, keepdim=True), atol=1e-6)


def test_the_teacher_s_parameters_follow_the_student_and_its_statistics_do_not(folder: Path) -> None:
    task = DINOTask(config_of(folder))
    model = model_of(task).train()
    task.loss(model, next(task.train_batches(0)))
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in model.student.buffers():
            buffer.add_(1)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    student = model.student.state_dict()
    step = 4
    momentum = 1 + 0.5 * (0.996 - 1) * (1 + math.cos(math.pi * step / (2 * task.num_steps)))
    task.after_update(model, step, lambda tensor: tensor)
    parameters = dict(model.teacher.named_parameters())
    for name, tensor in model.teacher.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * student[name] if name in parameters else before[name]
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_what_is_logged_is_the_entropy_the_divergence_and_the_spread(folder: Path) -> None:
    task = DINOTask(config_of(folder))
    model = model_of(task).train()
    crops = next(task.train_batches(0))
    values = task.loss(model, crops)
    with torch.no_grad():
        output = model(crops)
    targets = (output.teacher_logits / 0.04).softmax(dim=1)
    student = (output.student_logits / 0.1).log_softmax(dim=1).chunk(4)
    entropy = -(targets * targets.log()).sum(dim=1).mean()
    divergences = [
        (q * (q.log() - p)).sum(dim=1).mean()
        for g, q in enumerate(targets.chunk(2))
        for v, p in enumerate(student)
        if g != v
    ]
    unit = F.normalize(output.teacher_features, dim=1)
    spread = (unit - unit.mean(dim=0)).square().mean(dim=0).sqrt().mean() * 8**0.5
    assert values["teacher_entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)
    assert values["teacher_student_kl"].item() == pytest.approx(torch.stack(divergences).mean().item(), rel=1e-4)
    assert values["feature_spread"].item() == pytest.approx(spread.item(), rel=1e-4)
    assert [name for name, value in values.items() if value.requires_grad] == ["loss"]


# A run


def test_the_engine_asks_the_task_at_every_step(folder: Path) -> None:
    assert isinstance(DINOTask(config_of(folder)), StepHooks)


def test_the_last_layer_is_held_in_the_first_epoch_alone(folder: Path, tmp_path: Path) -> None:
    task = DINOTask(config_of(folder))
    model = model_of(task)
    first = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    moved: list[set[str]] = []

    def look(progress: Progress) -> None:
        if progress.figures is not None:
            now = model.student.state_dict()
            moved.append({name for name, tensor in first.items() if not torch.equal(tensor, now[name])})

    run(task, tmp_path / "run", look)
    parameters = {name for name, parameter in model.student.named_parameters() if parameter.requires_grad}
    # The true gradient of the key biases of class attention is 0.
    of_no_effect = {name for name in parameters if name.endswith("attn.k.bias")}
    last = {"head.last_layer.weight_v"}
    assert moved[0] & parameters >= parameters - last - of_no_effect
    assert moved[0] & last == set()
    assert moved[1] & last == last
    assert torch.equal(model.student.head.last_layer.weight_g, torch.ones(10, 1))


def test_the_teacher_s_batch_norms_see_the_batches_too(folder: Path, tmp_path: Path) -> None:
    task = DINOTask(config_of(folder))
    model: Any = model_of(task)
    run(task, tmp_path / "run")
    num_steps = 2 * (NUM_IMAGES // 4)
    # In each step, the teacher makes one pass over the global crops, and the student one pass per crop size.
    assert model.teacher.backbone.stem[0].norm.num_batches_tracked == num_steps
    assert model.student.backbone.stem[0].norm.num_batches_tracked == 2 * num_steps


def test_a_run_leaves_the_teacher_s_backbone_and_no_best(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    task = DINOTask(replace(config, model=replace(config.model, drop_path_rate=0.2)))
    figures = run(task, tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {"log.jsonl", "last.pt", "model.safetensors"}
    lines = read_log(tmp_path / "run" / "log.jsonl")
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) == 6
    assert all({"loss", "teacher_entropy", "teacher_student_kl", "feature_spread"} <= line.keys() for line in steps)
    assert {name: lines[-1][name] for name in figures} == figures

    exported: Any = xcit.get_model(tmp_path / "run" / "model.safetensors")
    assert (exported.num_classes, exported.config.drop_path_rate) == (0, 0.0)
    assert exported.info is not None
    assert (exported.info.name, exported.info.preprocessing) == ("dino-test", config.preprocessing)
    images = torch.randn(2, 3, 12, 12)
    teacher = model_of(task).teacher.backbone.eval()
    with torch.no_grad():
        assert torch.equal(exported(images), teacher(images))
    assert exported(images).shape == (2, 8)
    (features,) = xcit.extract_features(folder / "0.png", exported)
    assert features.layers[1].shape == (8,)


def test_the_figures_are_the_teacher_s_on_whole_images(folder: Path) -> None:
    task = DINOTask(config_of(folder, num_watched=100))
    model = model_of(task).train()
    model.center.copy_(torch.randn(1, 10))
    figures = task.evaluate(model)
    assert model.teacher.training
    model.eval()
    images = [preprocess(Image.open(folder / f"{i}.png"), task.config.preprocessing) for i in range(NUM_IMAGES)]
    with torch.no_grad():
        features, logits = model.teacher([torch.stack(images)])
    targets = ((logits - model.center) / 0.04).softmax(dim=1)
    unit = F.normalize(features, dim=1)
    spread = unit.std(dim=0, correction=0).mean() * 8**0.5
    assert figures["feature_spread"] == pytest.approx(spread.item(), rel=1e-4)
    assert figures["teacher_entropy"] == pytest.approx(-(targets * targets.log()).sum(dim=1).mean().item(), rel=1e-4)

    # Two processes: each evaluates a share of the images, and both get the figures of all images.
    shares: list[Tensor] = []
    for rank in range(2):
        task.evaluate(model, Layout(batch_size=4, rank=rank, world_size=2), lambda own: shares.append(own) or own)  # type: ignore[func-returns-value]
    assert [int(share[-1]) for share in shares] == [7, 6]
    assert task.evaluate(model, Layout(batch_size=4, world_size=2), lambda _: sum(shares)) == pytest.approx(figures)  # type: ignore[arg-type,return-value]


def test_the_watched_images_are_the_same_for_every_seed(folder: Path) -> None:
    drawn = []
    for seed in (0, 1):
        config = config_of(folder, run=RunConfig(batch_size=4, num_workers=0, seed=seed))
        images = DINOTask(config)._watched
        drawn.append([images.image_name(index) for index in range(len(images))])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 7


# Mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crops": MultiCropConfig(local_size=3)}, "crops.local_size is 3, smaller than one patch of 4x4"),
        (
            {"preprocessing": Preprocessing(image_size=3, resize_to=3)},
            "preprocessing.image_size is 3, smaller than one patch of 4x4",
        ),
        ({"num_watched": 1}, "num_watched is 1, but must be at least 2"),
        (
            {"run": RunConfig(ema_decay=0.9)},
            "run.ema_decay must be 0: DINO exports its teacher, which already is a moving average of weights",
        ),
    ],
)
def test_fields_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError) as caught:
        config_of("somewhere", **changes)
    assert str(caught.value) == message


def test_a_local_size_does_not_count_where_there_are_no_local_crops(folder: Path) -> None:
    task = DINOTask(config_of(folder, crops=MultiCropConfig(num_local=0, local_size=3)))
    assert [tuple(crop.shape) for crop in next(task.train_batches(0))] == [(4, 3, 12, 12)] * 2
    assert task.loss(task.model, next(task.train_batches(0)))["loss"].isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_temperature": 0.0}, "dino.teacher_temperature is 0.0, but must be above 0"),
        ({"student_temperature": math.inf}, "dino.student_temperature is inf, but must be above 0"),
        ({"teacher_momentum": 1.5}, "dino.teacher_momentum is 1.5, but must be in 0..1"),
        ({"freeze_last_layer": -1}, "dino.freeze_last_layer is -1, but must be 0 or more"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError) as caught:
        TeachingConfig(**changes)
    assert str(caught.value) == message


def test_data_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="dino-test has no data of its own: set data to a folder of images"):
        DINOTask(config_of(""))
    with pytest.raises(XCiTError, match="a folder without images"):
        DINOTask(config_of(tmp_path))


def test_a_folder_of_nothing_readable_is_one_line(tmp_path: Path) -> None:
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(b"")
    task = DINOTask(config_of(tmp_path))
    with pytest.raises(XCiTError, match=r"none of the 4 images for the evaluation could be read"):
        task.evaluate(task.model)
    with pytest.raises(XCiTError, match=r"4 successive images can't be read; the first: .*\.png: the file is empty"):
        next(task.train_batches(0))
