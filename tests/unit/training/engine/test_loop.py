"""Tests the training loop with a tiny regression task, and with classification of images of coloured squares."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiT, XCiTConfig
from xcit.training.engine.config import EngineConfig, OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import read_log
from xcit.training.engine.loop import train_task
from xcit.training.engine.progress import Progress, Stopped
from xcit.training.engine.task import Layout, Reduce
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.weights.files import read_checkpoint
from xcit.zoo import load_file

CPU = torch.device("cpu")


class Line:
    """A task that fits y = 2x - 1; the loss of one chosen batch can be NaN."""

    watch = "fit"
    num_inputs = 100

    def __init__(self, num_batches: int = 4, bad: tuple[int, int] | None = None) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(1, 1)
        self.num_steps, self.bad = num_batches, bad
        self.unreadable: list[str] = []
        self.evaluated: list[float] = []

    def train_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        for step in range(self.num_steps):
            x = torch.rand(8, 1, generator=generator)
            y = 2 * x - 1
            if step >= first_step:
                yield x, y * float("nan") if self.bad == (epoch, step) else y

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        # A random draw, so that a resumed run with other draws has other losses.
        error = (model(batch[0]) - batch[1] + 0.01 * torch.randn(8, 1)).square().mean()
        return {"loss": error, "root": error.sqrt()}

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        with torch.inference_mode():
            self.evaluated.append(-abs(model.eval()(torch.ones(1, 1)).item() - 1))
        return {"fit": self.evaluated[-1]}

    def export(self, model: nn.Module, path: Path) -> None:
        torch.save(model.state_dict(), path)


def train_line(
    task: Line,
    folder: Path,
    *,
    epochs: int = 3,
    resume: str | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
    **run: Any,
) -> list[Progress]:
    folder.mkdir(exist_ok=True)
    reports: list[Progress] = []

    def both(progress: Progress) -> None:
        reports.append(progress)
        report(progress)

    config = RunConfig(**{"batch_size": 8, "num_workers": 0, "log_every": 2} | run)
    train_task(
        task,
        Processes(config, CPU),
        EngineConfig(
            run=config,
            optimizer=OptimizerConfig(lr=0.3, weight_decay=0.0),
            schedule=ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=0.0, min_lr=0.01),
        ),
        folder,
        resume_from=folder / resume if resume else None,
        report=both,
        announce=announce,
    )
    return reports


def stop_at(epoch: int, step: int, how: Callable[[], object]) -> Callable[[Progress], None]:
    """Calls a function at an epoch and step of the run."""

    def report(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step) and progress.figures is None:
            how()

    return report


def send(number: signal.Signals) -> Callable[[], object]:
    return lambda: os.kill(os.getpid(), number)


def fall() -> None:
    raise ConnectionResetError("the machine is gone")


def read(path: Path) -> Any:
    with path.open("rb") as file:  # a file object: for a path, the suffix would determine the format
        return torch.load(file, weights_only=True)


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "log.jsonl") if line["kind"] == kind]


def same(one: Any, other: Any) -> bool:
    """Returns whether two checkpoints are equal, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


TIMES = {"seconds", "images_per_second", "data_wait"}


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(folder / "log.jsonl")]


def test_reports_every_step_and_every_evaluation(tmp_path: Path) -> None:
    reports = train_line(Line(), tmp_path)
    steps = [report for report in reports if report.figures is None]
    assert [(report.epoch, report.step) for report in steps] == [(e, s) for e in range(3) for s in range(1, 5)]
    assert {(report.num_epochs, report.num_steps) for report in reports} == {(3, 4)}
    assert [report.epoch for report in reports if report.figures] == [0, 1, 2]
    rates = [report.lr for report in steps]
    assert rates[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])  # the warm-up, step by step
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)
    assert steps[-1].loss < steps[0].loss / 3
    assert all(report.images_per_second > 0 and 0 <= report.data_wait <= 1 for report in steps)


def test_writes_lines_checkpoints_and_the_result(tmp_path: Path) -> None:
    task = Line()
    reports = train_line(task, tmp_path, evaluate_every=2)
    epochs, steps = lines_of(tmp_path, "epoch"), lines_of(tmp_path, "step")
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 4), (2, 8), (3, 12)]
    # Only epochs with an evaluation have figures: every second epoch, and the last.
    assert ["fit" in line for line in epochs] == [False, True, True]
    assert [line["fit"] for line in epochs[1:]] == task.evaluated
    for epoch, line in enumerate(epochs):
        of_epoch = [report for report in reports if report.epoch == epoch and report.figures is None]
        assert line["loss"] == pytest.approx(np.mean([report.loss for report in of_epoch]))
        assert line["lr"] == of_epoch[-1].lr
        assert line["seconds"] > 0
        assert line["images_per_second"] > 0
    assert [(line["epoch"], line["step"]) for line in steps] == [(1, 2), (1, 4), (2, 6), (2, 8), (3, 10), (3, 12)]
    assert all(line["root"] > line["loss"] > 0 for line in steps)
    files = {"last.pt", "best.pt", "log.jsonl", "model.safetensors", "best.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert torch.equal(read(tmp_path / "model.safetensors")["weight"], task.model.get_parameter("weight"))


def test_averaged_weights_are_what_is_measured_and_exported(tmp_path: Path) -> None:
    task = Line()
    train_line(task, tmp_path, ema_decay=0.5)
    exported: Any = read(tmp_path / "model.safetensors")
    assert not torch.equal(exported["weight"], task.model.get_parameter("weight"))
    state = read(tmp_path / "last.pt")
    assert torch.equal(exported["weight"], state["ema"]["weight"])
    assert torch.equal(task.model.get_parameter("weight"), state["model"]["weight"])
    average = nn.Linear(1, 1)
    average.load_state_dict(exported)
    assert task.evaluated[-1] == pytest.approx(-abs(average(torch.ones(1, 1)).item() - 1))


def test_the_best_weights_are_kept_beside_the_last(tmp_path: Path) -> None:
    task = Line()
    train_line(task, tmp_path, epochs=6)
    best = int(np.argmax(task.evaluated))
    position = read(tmp_path / "best.pt")["position"]
    assert (position["epoch"], position["step"]) == (best, 4)
    assert torch.equal(read(tmp_path / "best.safetensors")["weight"], read(tmp_path / "best.pt")["model"]["weight"])


def test_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    train_line(Line(), tmp_path, save_every_steps=3, keep_checkpoints=3)
    names = sorted(path.name for path in tmp_path.glob("step-*.pt"))
    assert names == ["step-00000008.pt", "step-00000011.pt", "step-00000012.pt"]
    assert same(read(tmp_path / names[-1]), read(tmp_path / "last.pt"))
    assert read(tmp_path / names[1])["position"]["step"] == 3


@pytest.mark.parametrize("finished", [0, 2])
def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, finished: int) -> None:
    with pytest.raises(XCiTError) as caught:
        train_line(Line(bad=(finished, 2)), tmp_path)
    message = str(caught.value)
    start = f"the loss is nan in epoch {finished + 1}, batch 3 of 4 (step {4 * finished + 3}), at learning rate "
    assert message.startswith(start)
    assert "try a lower optimizer.lr" in message
    assert "\n" not in message
    if finished:
        assert f"the last good checkpoint is {tmp_path / 'last.pt'}" in message
        state = read(tmp_path / "last.pt")
        assert (state["position"]["epoch"], state["position"]["step"]) == (2, 0)
        assert all(tensor.isfinite().all() for tensor in state["model"].values())
    else:
        assert "there is no checkpoint" in message
        assert not (tmp_path / "last.pt").exists()
    assert not (tmp_path / "model.safetensors").exists()


class Hooked(Line):
    """A task that records the calls of its hooks, freezes its bias by removing the gradient, and returns warnings."""

    watch = ""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def begin_epoch(self, model: nn.Module, epoch: int) -> None:
        assert model.training
        self.asked.append(("epoch", epoch))

    def before_update(self, model: nn.Module, step: int) -> None:
        assert isinstance(model, nn.Linear)
        assert model.weight.grad is not None
        model.bias.grad = None
        self.weight = model.weight.detach().clone()
        self.asked.append(("before", step))

    def after_update(self, model: nn.Module, step: int, reduce: Reduce) -> None:
        assert isinstance(model, nn.Linear)
        # At step 0 the learning rate is 0.
        assert torch.equal(model.weight, self.weight) == (step == 0)
        assert reduce(torch.ones(1)) == 1
        self.asked.append(("after", step))

    def concerns(self, step: int, losses: dict[str, float]) -> Sequence[str]:
        assert losses.keys() == {"loss", "root"}
        return [f"step {step} worries"] if step % 8 == 3 else []


def test_a_task_with_a_say_in_each_step_has_it(tmp_path: Path) -> None:
    task, announced = Hooked(), list[str]()
    assert isinstance(task.model, nn.Linear)
    bias = task.model.bias.detach().clone()
    train_line(task, tmp_path, epochs=2, announce=announced.append)
    updates = [(when, step) for step in range(8) for when in ("before", "after")]
    assert task.asked == [("epoch", 0), *updates[:8], ("epoch", 1), *updates[8:]]
    assert torch.equal(task.model.bias, bias)
    assert announced == ["step 3 worries"]


def test_where_no_figure_is_watched_no_best_is_kept(tmp_path: Path) -> None:
    reports = train_line(Hooked(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.jsonl", "model.safetensors"}
    assert all("fit" in line for line in lines_of(tmp_path, "epoch"))
    assert sum(report.figures is not None for report in reports) == 3
    assert read(tmp_path / "last.pt")["position"]["best"] is None


def test_a_task_is_asked_again_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_line(Hooked(), tmp_path, report=stop_at(1, 1, send(signal.SIGTERM)))
    task = Hooked()
    train_line(task, tmp_path, resume="last.pt")
    assert task.asked[:3] == [("epoch", 1), ("before", 6), ("after", 6)]


def test_the_weight_decay_goes_on_after_a_resume(tmp_path: Path) -> None:
    def train_with(folder: Path, **more: Any) -> None:
        folder.mkdir(exist_ok=True)
        config = RunConfig(batch_size=8, num_workers=0)
        train_task(
            Line(),
            Processes(config, CPU),
            EngineConfig(
                run=config,
                optimizer=OptimizerConfig(lr=0.3, weight_decay=0.04, final_weight_decay=0.4),
                schedule=ScheduleConfig(epochs=3, warmup_epochs=1),
            ),
            folder,
            **more,
        )

    train_with(tmp_path / "whole")
    with pytest.raises(Stopped):
        train_with(tmp_path / "parts", report=stop_at(1, 1, send(signal.SIGTERM)))
    train_with(tmp_path / "parts", resume_from=tmp_path / "parts" / "last.pt")
    states = [read(tmp_path / part / "last.pt") for part in ("whole", "parts")]
    assert same(*states)
    assert {group["weight_decay"] for group in states[0]["optimizer"]["param_groups"]} == {0.0, 0.4}


def test_less_than_a_batch_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="fewer training images than one batch of 8"):
        train_line(Line(num_batches=0), tmp_path)


def test_resumed_after_the_last_epoch_exports_once_more(tmp_path: Path) -> None:
    task = Line()
    train_line(task, tmp_path)
    before, log = (tmp_path / "model.safetensors").read_bytes(), untimed(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    again = Line()
    assert train_line(again, tmp_path, resume="last.pt") == []
    assert again.evaluated == task.evaluated[-1:]
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert untimed(tmp_path) == log


def test_nothing_to_resume_is_named(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"last\.pt: no such checkpoint"):
        train_line(Line(), tmp_path, resume="last.pt")


def test_bfloat16_trains_too(tmp_path: Path) -> None:
    reports = train_line(Line(), tmp_path, epochs=6, dtype="bfloat16")
    losses = [report.loss for report in reports if report.figures is None]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 3), (1, 4), (2, 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, epoch: int, step: int, number: signal.Signals
) -> None:
    train_line(Line(), tmp_path / "whole", ema_decay=0.5)
    parts = tmp_path / "parts"
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        train_line(Line(), parts, ema_decay=0.5, report=stop_at(epoch, step, send(number)))
    assert signal.getsignal(number) == before
    assert (caught.value.signal, caught.value.checkpoint) == (number.name, parts / "last.pt")
    assert not (parts / "model.safetensors").exists()
    # The run stops one step after the step in which the signal came, in the same or the next epoch.
    state = read(parts / "last.pt")
    assert state["position"]["epoch"] * 4 + state["position"]["step"] == epoch * 4 + step + 1
    train_line(Line(), parts, ema_decay=0.5, resume="last.pt")
    assert same(read(tmp_path / "whole" / "last.pt"), read(parts / "last.pt"))
    assert untimed(tmp_path / "whole") == untimed(parts)


@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 1), (2, 4)])
def test_after_a_crash_the_run_goes_on_bit_for_bit(tmp_path: Path, epoch: int, step: int) -> None:
    settings: dict[str, Any] = {"save_every_steps": 2, "ema_decay": 0.5, "evaluate_every": 2}
    train_line(Line(), tmp_path / "whole", **settings)
    parts = tmp_path / "parts"
    with pytest.raises(ConnectionResetError):
        train_line(Line(), parts, report=stop_at(epoch, step, fall), **settings)
    checkpoint = "last.pt" if (parts / "last.pt").exists() else None
    train_line(Line(), parts, resume=checkpoint, **settings)
    assert same(read(tmp_path / "whole" / "last.pt"), read(parts / "last.pt"))
    if checkpoint:
        assert untimed(tmp_path / "whole") == untimed(parts)


def test_an_older_checkpoint_rewinds_the_log(tmp_path: Path) -> None:
    train_line(Line(), tmp_path, keep_checkpoints=2)
    log = untimed(tmp_path)
    announced: list[str] = []
    train_line(Line(), tmp_path, resume="step-00000008.pt", announce=announced.append)
    assert untimed(tmp_path) == log
    assert announced[0] == f"resumed from {tmp_path / 'step-00000008.pt'}: epoch 3, step 0 of 4"


def test_parts_of_a_batch_are_averaged(tmp_path: Path) -> None:
    class Halves(Line):
        """The same batches, each in two parts."""

        def train_batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
            for x, y in super().train_batches(epoch, first_step):
                yield from zip(x.chunk(2), y.chunk(2), strict=True)

        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            return {"loss": (model(batch[0]) - batch[1]).square().mean()}

    class Wholes(Halves):
        train_batches = Line.train_batches

    halves, wholes = Halves(), Wholes()
    train_line(halves, tmp_path / "halves", max_device_batch=4)
    train_line(wholes, tmp_path / "wholes")
    assert torch.allclose(halves.model.get_parameter("weight"), wholes.model.get_parameter("weight"), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 0.5}, r"last\.pt contains no averaged weights: set run\.ema_decay to 0"),
        (
            {"batch_size": 4},
            r"from step 2 of an epoch of 4 batches of 8 images; this run's epochs have 4 batches of 4 images",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Stopped):
        train_line(Line(), tmp_path, report=stop_at(1, 1, send(signal.SIGTERM)))
    with pytest.raises(XCiTError, match=message):
        train_line(Line(), tmp_path, resume="last.pt", **changes)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train_line(Line(), tmp_path)
    other = Line()
    other.model = nn.Linear(2, 1)
    with pytest.raises(XCiTError, match=r"last\.pt does not fit this run: .*size mismatch"):
        train_line(other, tmp_path, resume="last.pt")


def test_a_checkpoint_of_other_groups_of_parameters_is_refused(tmp_path: Path) -> None:
    def train_with(**optimizer: Any) -> None:
        task = Line()
        task.model = XCiT(XCiTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=2))
        run = RunConfig(batch_size=8, num_workers=0)
        checkpoint = tmp_path / "last.pt"
        task.num_steps = 1
        task.loss = lambda model, batch: {"loss": model(torch.ones(2, 3, 8, 8)).sum()}  # type: ignore[method-assign]
        task.evaluate = lambda *_: {"fit": 0.0}  # type: ignore[method-assign]
        train_task(
            task,
            Processes(run, CPU),
            EngineConfig(run=run, optimizer=OptimizerConfig(**optimizer), schedule=ScheduleConfig(epochs=1)),
            tmp_path,
            resume_from=checkpoint if checkpoint.exists() else None,
        )

    train_with()
    with pytest.raises(
        XCiTError, match=r"with \[\d+, \d+\] parameters in its groups, but this run has .*: keep optimizer.undecayed"
    ):
        train_with(undecayed="vectors_and_tokens")
    train_with()


def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with (
        ExitStack() as disk,
        pytest.raises(XCiTError, match=r"last\.pt: can't be written: .*; the previous checkpoint is kept"),
    ):
        train_line(Line(), tmp_path, report=stop_at(1, 1, lambda: disk.enter_context(full_disk(3000))))
    assert read(tmp_path / "last.pt")["position"]["epoch"] == 1
    assert not list(tmp_path.glob(".xcit-*"))
    (tmp_path / ".xcit-0123.tmp").write_text("half of a checkpoint that a kill left")
    train_line(Line(), tmp_path, resume="last.pt")
    assert not list(tmp_path.glob(".xcit-*"))


def test_too_many_unreadable_inputs_stop_the_run(tmp_path: Path) -> None:
    task, announced = Line(), list[str]()
    task.unreadable.append("a.png: no image")
    train_line(task, tmp_path, max_unreadable=0.01, announce=announced.append)
    assert (tmp_path / "unreadable.txt").read_text() == "a.png: no image\n"
    assert announced == [
        f"1 unreadable training images were skipped, see {tmp_path / 'unreadable.txt'}; the first: a.png: no image"
    ]
    task.unreadable.append("b.png: cut off")
    with pytest.raises(XCiTError, match=r"2 of 100 training images can't be read, more than run\.max_unreadable 0\.01"):
        train_line(task, tmp_path / "again", max_unreadable=0.01)
    assert (tmp_path / "again" / "unreadable.txt").read_text() == "a.png: no image\nb.png: cut off\n"


def test_frozen_modules_stay_in_evaluation_mode(tmp_path: Path) -> None:
    task = Line()
    frozen, free = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    task.model = nn.Sequential(frozen.requires_grad_(False), free, nn.Linear(1, 1))
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    train_line(task, tmp_path)
    assert same(before, frozen.state_dict())
    assert free.num_batches_tracked == 12


# With images


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes pictures of red, green and blue squares on noise: 24 training images and 6 validation images."""
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
    fields: dict[str, Any] = {
        "name": "squares",
        "model": XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, drop_path_rate=0.2),
        "preprocessing": Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3),
        "data": str(data),
        "augmentation": AugmentationConfig(crop="padded", padding=1),
        "optimizer": OptimizerConfig(lr=0.01, clip_grad=1.0),
        "schedule": ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-3),
        "run": RunConfig(batch_size=8, num_workers=0, evaluate_every=epochs),
    }
    return ClassificationConfig(**(fields | changes))


def train_squares(
    config: ClassificationConfig,
    folder: Path,
    *,
    resume: str | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    processes = Processes(config.run, CPU)
    return train_task(
        ClassificationTask(config, processes.layout),
        processes,
        config,
        folder,
        resume_from=folder / resume if resume else None,
        report=report,
    )


def test_learns_the_colours_of_squares(squares: Path, tmp_path: Path) -> None:
    figures = train_squares(config_of(squares, epochs=12), tmp_path)
    log = lines_of(tmp_path, "epoch")
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert figures["top1"] >= 80
    assert (log[-1]["top1"], log[-1]["val_loss"]) == (figures["top1"], figures["val_loss"])
    model = load_file(tmp_path / "model.safetensors")
    assert model.info is not None
    assert model.info.class_names == ("blue", "green", "red")
    assert model.info.preprocessing.image_size == 16
    assert model.config.drop_path_rate == 0


@pytest.mark.parametrize("how", [fall, send(signal.SIGTERM)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    squares: Path, tmp_path: Path, how: Callable[[], object]
) -> None:
    config = config_of(
        squares,
        epochs=4,
        augmentation=AugmentationConfig(rand_augment="rand-m9-n2-mstd0.5-inc1", mixup=0.8, cutmix=1.0, num_repeats=2),
        run=RunConfig(batch_size=8, num_workers=1, ema_decay=0.9, save_every_steps=2, log_every=1),
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train_squares(config, whole)
    with pytest.raises((ConnectionResetError, Stopped)):
        train_squares(config, parts, report=stop_at(2, 1, how))
    assert train_squares(config, parts, resume="last.pt") == expected
    assert same(read(whole / "last.pt"), read(parts / "last.pt"))
    weights = [read_checkpoint(folder / "model.safetensors") for folder in (whole, parts)]
    assert weights[0].metadata == weights[1].metadata  # includes the digest
    assert untimed(whole) == untimed(parts)


def test_the_number_of_workers_changes_nothing(squares: Path, tmp_path: Path) -> None:
    figures = []
    for num_workers in (0, 1):
        config = config_of(squares, epochs=1, run=RunConfig(batch_size=8, num_workers=num_workers))
        figures.append(train_squares(config, tmp_path / str(num_workers)))
    assert figures[0] == figures[1]


def test_a_whole_batch_is_needed(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="fewer training images than one batch of 25"):
        train_squares(config_of(squares, epochs=1, run=RunConfig(batch_size=25, num_workers=0)), tmp_path)
