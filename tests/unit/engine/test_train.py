"""The loop, with a task of a few numbers; and with classification of coloured squares, where the data count too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.loader import AugmentationConfig
from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.engine.train import Progress, train
from xcit.errors import XCiTError
from xcit.models import Preprocessing, XCiTConfig
from xcit.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.weights.files import read_checkpoint
from xcit.zoo import load_file

CPU = torch.device("cpu")


class Line:
    """Fits y = 2x - 1; a batch with a mark gives no number."""

    def __init__(self, num_batches: int = 4, bad: tuple[int, int] | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(1, 1)
        self.num_batches, self.bad = num_batches, bad
        self.epochs: list[int] = []
        self.evaluated: list[float] = []

    def train_batches(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        self.epochs.append(epoch)
        generator = torch.Generator().manual_seed(epoch)
        batches = []
        for step in range(self.num_batches):
            x = torch.rand(8, 1, generator=generator)
            y = 2 * x - 1
            batches.append((x, y * float("nan") if self.bad == (epoch, step) else y))
        return batches

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch[0]) - batch[1]).square().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            self.evaluated.append(abs(model(torch.ones(1, 1)).item() - 1))
        return {"fit": -self.evaluated[-1]}

    def export(self, model: nn.Module, path: Path, figures: dict[str, float]) -> None:
        torch.save({"weights": model.state_dict(), "figures": figures}, path)


def train_line(task: Line, folder: Path, *, epochs: int = 3, resume: bool = False, **run: Any) -> list[Progress]:
    folder.mkdir(exist_ok=True)
    reports: list[Progress] = []
    train(
        task,
        run=RunConfig(**{"batch_size": 8, "num_workers": 0} | run),
        optimizer_config=OptimizerConfig(lr=0.3, weight_decay=0.0),
        schedule_config=ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=0.0, min_lr=0.01),
        directory=folder,
        device=CPU,
        resume=resume,
        report=reports.append,
    )
    return reports


def read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:  # from a path, torch takes the suffix for the format
        return torch.load(file, weights_only=True)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_reports_every_step_and_every_evaluation(tmp_path: Path) -> None:
    reports = train_line(Line(), tmp_path)
    steps = [report for report in reports if report.figures is None]
    assert [(report.epoch, report.step) for report in steps] == [(e, s) for e in range(3) for s in range(1, 5)]
    assert {(report.num_epochs, report.num_steps) for report in reports} == {(3, 4)}
    assert [report.epoch for report in reports if report.figures] == [0, 1, 2]
    rates = [report.lr for report in steps]
    assert rates[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])  # the warm-up, a step at a time
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)
    assert steps[-1].loss < steps[0].loss / 3
    assert all(report.images_per_second > 0 for report in steps)


def test_writes_a_line_an_epoch_a_checkpoint_and_the_result(tmp_path: Path) -> None:
    task = Line()
    reports = train_line(task, tmp_path, evaluate_every=2)
    log = log_of(tmp_path)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    # Figures where there was an evaluation, of that very epoch: every second one, and the last.
    assert ["fit" in line for line in log] == [False, True, True]
    assert [line["fit"] for line in log[1:]] == [-value for value in task.evaluated]
    for epoch, line in enumerate(log):
        losses = [report.loss for report in reports if report.epoch == epoch and report.figures is None]
        assert line["loss"] == pytest.approx(np.mean(losses))
        assert line["seconds"] > 0
        assert line["images_per_second"] > 0
        assert line["lr"] == [report.lr for report in reports if report.epoch == epoch][-1]
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.jsonl", "model.safetensors"}
    exported = read(tmp_path / "model.safetensors")
    assert exported["figures"] == {"fit": -task.evaluated[-1]}
    assert torch.equal(exported["weights"]["weight"], task.model.weight)


def test_averaged_weights_are_what_is_measured_and_exported(tmp_path: Path) -> None:
    task = Line()
    train_line(task, tmp_path, ema_decay=0.5)
    exported = read(tmp_path / "model.safetensors")["weights"]
    assert not torch.equal(exported["weight"], task.model.weight)
    state = read(tmp_path / "last.pt")
    assert torch.equal(exported["weight"], state["ema"]["weight"])
    assert torch.equal(task.model.weight, state["model"]["weight"])
    average = nn.Linear(1, 1)
    average.load_state_dict(exported)
    assert task.evaluated[-1] == pytest.approx(abs(average(torch.ones(1, 1)).item() - 1))


@pytest.mark.parametrize("finished", [0, 2])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, finished: int) -> None:
    with pytest.raises(XCiTError) as caught:
        train_line(Line(bad=(finished, 2)), tmp_path)
    message = str(caught.value)
    assert message.startswith(f"the loss is nan in epoch {finished + 1}, step 3, at learning rate ")
    assert "try a lower optimizer.lr" in message
    assert "\n" not in message
    if finished:
        assert f"the last good checkpoint is {tmp_path / 'last.pt'}" in message
        state = read(tmp_path / "last.pt")
        assert state["epoch"] == 2
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    else:
        assert "there is no checkpoint" in message
        assert not (tmp_path / "last.pt").exists()
    assert not (tmp_path / "model.safetensors").exists()


def test_less_than_a_batch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="fewer training images than one batch of 8"):
        train_line(Line(num_batches=0), tmp_path)


def test_resumed_after_the_last_epoch_exports_once_more(tmp_path: Path) -> None:
    task = Line()
    train_line(task, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    again = Line()
    assert train_line(again, tmp_path, resume=True) == []
    assert again.evaluated == task.evaluated[-1:]
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(log_of(tmp_path)) == 3


def test_nothing_to_resume_is_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"last\.pt: no such checkpoint"):
        train_line(Line(), tmp_path, resume=True)


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    reports = train_line(Line(), tmp_path, epochs=6, dtype="bfloat16")
    losses = [report.loss for report in reports if report.figures is None]
    assert losses[-1] < losses[0]


# With images


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red, green and blue squares on noise: 24 images to train on and 6 to watch."""
    folder = tmp_path_factory.mktemp("squares")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                row, column = draw.integers(0, 8, 2)
                pixels[row : row + 8, column : column + 8, channel] = 255
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def config_of(data: Path, epochs: int, **changes: Any) -> ClassificationConfig:
    return ClassificationConfig(
        **{
            "name": "squares",
            "model": XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, drop_path_rate=0.2),
            "preprocessing": Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3),
            "data": str(data),
            "augmentation": AugmentationConfig(crop="padded", padding=1),
            "optimizer": OptimizerConfig(lr=0.01, clip_grad=1.0),
            "schedule": ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-3),
            "run": RunConfig(batch_size=8, num_workers=0, evaluate_every=epochs),
        }
        | changes
    )


def train_squares(
    config: ClassificationConfig, folder: Path, resume: bool = False, stop_in: int | None = None
) -> dict[str, float]:
    """Trains, and breaks off in the middle of the epoch `stop_in`."""
    folder.mkdir(exist_ok=True)

    def report(progress: Progress) -> None:
        if progress.epoch == stop_in and progress.step == 2:
            raise KeyboardInterrupt

    return train(
        ClassificationTask(config),
        run=config.run,
        optimizer_config=config.optimizer,
        schedule_config=config.schedule,
        directory=folder,
        device=CPU,
        resume=resume,
        report=report,
    )


def test_learns_the_colours_of_squares(squares: Path, tmp_path: Path) -> None:
    figures = train_squares(config_of(squares, epochs=12), tmp_path)
    log = log_of(tmp_path)
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert figures["top1"] >= 80
    assert (log[-1]["top1"], log[-1]["val_loss"]) == (figures["top1"], figures["val_loss"])
    model = load_file(tmp_path / "model.safetensors")
    assert model.info is not None
    assert model.info.class_names == ("blue", "green", "red")
    assert model.info.preprocessing.image_size == 16
    assert model.config.drop_path_rate == 0


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(squares: Path, tmp_path: Path) -> None:
    config = config_of(
        squares,
        epochs=4,
        augmentation=AugmentationConfig(rand_augment="rand-m9-n2-mstd0.5-inc1", mixup=0.8, cutmix=1.0),
        run=RunConfig(batch_size=8, num_workers=1, ema_decay=0.9, evaluate_every=1),
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train_squares(config, whole)
    with pytest.raises(KeyboardInterrupt):
        train_squares(config, parts, stop_in=2)
    assert len(log_of(parts)) == 2
    assert train_squares(config, parts, resume=True) == expected
    one, other = (read(folder / "last.pt") for folder in (whole, parts))
    assert one["epoch"] == other["epoch"] == 4
    for part in ("model", "ema"):
        assert all(torch.equal(tensor, other[part][name]) for name, tensor in one[part].items())
    for index, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(tensor, other["optimizer"]["state"][index][name]) for name, tensor in moments.items())
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    weights = [read_checkpoint(folder / "model.safetensors") for folder in (whole, parts)]
    assert weights[0].metadata == weights[1].metadata  # the digest among them
    keys = ("epoch", "loss", "lr", "top1", "top5", "val_loss")
    assert [[line[key] for key in keys] for line in log_of(whole)] == [
        [line[key] for key in keys] for line in log_of(parts)
    ]


def test_the_number_of_workers_changes_nothing(squares: Path, tmp_path: Path) -> None:
    figures = []
    for num_workers in (0, 1):
        config = config_of(squares, epochs=1, run=RunConfig(batch_size=8, num_workers=num_workers))
        figures.append(train_squares(config, tmp_path / str(num_workers)))
    assert figures[0] == figures[1]


def test_a_whole_batch_is_needed(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="fewer training images than one batch of 25"):
        train_squares(config_of(squares, epochs=1, run=RunConfig(batch_size=25, num_workers=0)), tmp_path)
