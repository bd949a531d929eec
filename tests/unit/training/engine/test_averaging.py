"""Tests averaged weights: the average after each step, and the messages about the decay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.training.engine.averaging import build_average, describe_average, move_average
from xcit.training.engine.config import EngineConfig, OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.loop import train_task
from xcit.training.engine.task import Layout, Reduce


def averages(run: RunConfig, weights: list[float]) -> list[float]:
    """Returns the average after each step, for a model with one weight: it starts at 0 and then has these values."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = build_average(model, run, is_sharded=False)
    assert average is not None
    found = []
    for done, weight in enumerate(weights, start=1):
        nn.init.constant_(model.weight, weight)
        move_average(average, model, done)
        found.append(average.module.weight.item())
    return found


def test_the_published_decay_is_the_same_from_the_first_step_on() -> None:
    # The authors used timm's first ModelEma: average = decay * average + (1 - decay) * weight.
    expected, value = [], 0.0
    for weight in (1.0, 2.0, 4.0):
        value = 0.9 * value + 0.1 * weight
        expected.append(value)
    assert averages(RunConfig(ema_decay=0.9), [1.0, 2.0, 4.0]) == pytest.approx(expected, rel=1e-6)


def test_a_warm_up_forgets_the_start_at_once_and_ends_at_the_decay() -> None:
    weights = [float(number % 5) for number in range(200)]
    expected, value = [], 0.0
    for step, weight in enumerate(weights, start=1):
        decay = min(1 - step ** (-2 / 3), 0.9)
        value = decay * value + (1 - decay) * weight
        expected.append(value)
    assert averages(RunConfig(ema_decay=0.9, ema_warmup=True), weights) == pytest.approx(expected, rel=1e-5)
    assert 1 - 30 ** (-2 / 3) < 0.9 < 1 - 32 ** (-2 / 3)


def test_without_a_decay_there_is_no_average() -> None:
    assert build_average(nn.Linear(1, 1), RunConfig(), is_sharded=False) is None
    with pytest.raises(XCiTError, match="ema_warmup is True, but must be false without ema_decay"):
        RunConfig(ema_warmup=True)


def test_an_average_that_stays_the_start_is_warned_of() -> None:
    lines = describe_average(RunConfig(ema_decay=0.999), num_steps=30, num_epochs=2)
    assert lines == [
        "warning: the averaged weights are evaluated and exported, but after the 60 steps of this run, 94% of the "
        "average will still be the initial weights (run.ema_decay 0.999): set run.ema_warmup true, or run.ema_decay "
        "0.926"
    ]
    assert 0.926**60 < 0.011


def test_figures_that_lag_behind_are_told() -> None:
    # A run of the authors' recipe has 1251 steps per epoch.
    assert describe_average(RunConfig(ema_decay=0.99996), num_steps=1251, num_epochs=400) == [
        "until epoch 14, the evaluated weights are an average that still consists mostly of the initial weights "
        "(run.ema_decay 0.99996); run.ema_warmup true avoids this"
    ]


@pytest.mark.parametrize(
    "run", [RunConfig(), RunConfig(ema_decay=0.999, evaluate_every=7), RunConfig(ema_decay=0.999, ema_warmup=True)]
)
def test_where_all_is_well_nothing_is_said(run: RunConfig) -> None:
    assert describe_average(run, num_steps=453, num_epochs=14) == []


class Regression:
    """A task that learns the sum of two numbers, with 20 steps per epoch."""

    watch, num_steps, num_inputs = "", 20, 100

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(2, 1)
        self.unreadable: list[str] = []

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        yield from torch.rand(20, 8, 2, generator=torch.Generator().manual_seed(epoch))[first_step:]

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch)[:, 0] - batch.sum(dim=1)).square().mean()}

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        with torch.inference_mode():
            return {"val_loss": self.loss(model, torch.rand(50, 2))["loss"].item()}

    def export(self, model: nn.Module, path: Path) -> None:
        torch.save(model.state_dict(), path)


def test_a_short_run_with_a_long_average_says_so_and_is_good_with_a_warm_up(tmp_path: Path) -> None:
    def train(**run: Any) -> tuple[float, list[str]]:
        config, lines = RunConfig(batch_size=8, num_workers=0, **run), list[str]()
        figures = train_task(
            Regression(),
            Processes(config, torch.device("cpu")),
            EngineConfig(
                run=config,
                optimizer=OptimizerConfig(lr=0.1, weight_decay=0.0),
                schedule=ScheduleConfig(epochs=3, warmup_epochs=0, min_lr=0.0),
            ),
            tmp_path,
            announce=lines.append,
        )
        return figures["val_loss"], lines

    alone, told_alone = train()
    averaged, told = train(ema_decay=0.999)
    warmed, told_warmed = train(ema_decay=0.999, ema_warmup=True)
    assert averaged > 100 * alone
    assert [line[:8] for line in told] == ["warning:"]
    assert warmed < 0.01 * averaged
    assert told_alone == told_warmed == []
