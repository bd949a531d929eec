"""Fixtures that run the command line in this process, without access to the user's files, and a trained run."""

import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from forked import Done, Forked
from PIL import Image

COLOURS = {"blau": (30, 60, 200), "grün": (30, 190, 60), "rot": (210, 40, 30)}
"""Maps class names to colours, in the order of the labels. One name is not ASCII, as users' class names may be."""

SMALL = {
    "model.patch_size": "8",
    "model.embed_dim": "16",
    "model.depth": "1",
    "model.num_heads": "2",
    "model.cls_depth": "1",
    "model.in_channels": "3",
    "model.num_classes": "3",
    "preprocessing.image_size": "16",
    "preprocessing.resize_to": "16",
    "preprocessing.mean": "0.5,0.5,0.5",
    "preprocessing.std": "[0.25, 0.25, 0.25]",
    "holdout": "0",
    "augmentation.padding": "2",
    "optimizer.lr": "0.01",
    "schedule.warmup_epochs": "0",
    "run.batch_size": "5",
    "run.num_workers": "0",
    "run.ema_decay": "0",
    "run.evaluate_every": "1",
}
"""Fields of the packaged model's recipe for a training run of seconds on the three colours."""


@pytest.fixture(scope="session")
def xcit() -> Callable[..., Done]:
    """Runs `xcit ARGUMENTS...` in this process; an uncaught exception fails the test."""

    def run(*arguments: object) -> Done:
        from xcit.cli import main

        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        status: object = None
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("argv", ["xcit", *map(str, arguments)]), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            try:
                main()
            except SystemExit as exit_:
                status = exit_.code
        assert isinstance(status, int)
        printed, complained = (stream.buffer.getvalue().decode() for stream in (out, err))
        return Done(status, printed, complained)

    return run


@pytest.fixture(autouse=True)
def _place_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("XCIT_MIRROR", raising=False)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a data set with one folder per class: ten noisy pictures in many sizes for each of the three colours."""
    root = tmp_path_factory.mktemp("data") / "colours"
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(10):
            noise = draw.normal(0, 20, (16 + index, 20, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def small() -> list[str]:
    return [word for name, value in SMALL.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="session")
def trained(
    xcit: Callable[..., Done], colours: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """Returns the folder of a training run on the three colours, and the output of its command."""
    run = tmp_path_factory.mktemp("runs") / "run"
    fields = ("--data", colours, "--device", "cpu", *small, "--schedule.epochs", 12)
    return run, xcit("train", "xcit-pico-fashion-mnist", "--out", run, *fields)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forked]]:
    """Starts `python ARGUMENTS...` in one or more processes; kills processes that still run at the end of the test."""
    started = []

    def begin(*arguments: object, processes: int = 1) -> Forked:
        started.append(Forked(list(map(str, arguments)), processes, tmp_path_factory.mktemp("outputs")))
        return started[-1]

    yield begin
    for one in started:
        one.send(signal.SIGKILL)


@pytest.fixture
def make_scenes(xcit, fashion_mnist: Path, tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that composes scenes of garments for a task, and returns their folder."""

    def make(task: str, num_train: int, num_val: int) -> Path:
        folder = tmp_path / "scenes"
        counts = ("--train", num_train, "--val", num_val)
        done = xcit("make-data", "fashion-scenes", "--task", task, "--out", folder, *counts)
        assert (done.status, done.err) == (0, "")
        assert done.out == f"{folder}: {num_train} scenes to train on, {num_val} to measure on\n"
        return folder

    return make
