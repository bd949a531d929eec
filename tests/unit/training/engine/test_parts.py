"""Tests runs in which data-reading processes die, with and without a signal that asks for a stop."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xcit.errors import XCiTError
from xcit.training.engine.config import EngineConfig, OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import read_log
from xcit.training.engine.loop import _Loop, train_task
from xcit.training.engine.progress import Stopped
from xcit.training.engine.task import Layout, Reduce

NUM_STEPS, PARTS = 3, 4
DEATH = "DataLoader worker (pid 7) is killed by signal: Alarm clock. "


class Normed:
    """A tiny task with a batch norm, in four parts per step; its data-reading processes may die.

    Attributes:
        deaths: indices of parts, counted from 0 over the run. Before each of these parts, the processes die one time.
        signalled: whether SIGTERM comes before the death.
    """

    watch = ""
    num_steps = NUM_STEPS
    num_inputs = 100

    def __init__(self, deaths: tuple[int, ...] = (), *, signalled: bool = True) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.unreadable: list[str] = []
        self.deaths, self.signalled = list(deaths), signalled
        self.num_closed = 0
        self.dies_in_evaluation = False

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        draws = torch.Generator().manual_seed(epoch)
        for number in range(NUM_STEPS * PARTS):
            part = torch.rand(2, 2, generator=draws)
            if number >= first_step * PARTS:
                if epoch * NUM_STEPS * PARTS + number in self.deaths:
                    self.deaths.remove(epoch * NUM_STEPS * PARTS + number)
                    self.die()
                yield part

    def die(self) -> None:
        if self.signalled:
            self.signalled = False  # only one signal: a second SIGTERM would end the tests
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError(DEATH)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch) - batch.sum(dim=1, keepdim=True) + 0.01 * torch.randn(2, 1)).square().mean()}

    def evaluate(self, model: nn.Module, layout: Layout, reduce: Reduce) -> dict[str, float]:
        if self.dies_in_evaluation:
            self.dies_in_evaluation = False
            self.die()
        return {"mean": model.state_dict()["0.running_mean"].sum().item()}

    def export(self, model: nn.Module, path: Path) -> None:
        torch.save(model.state_dict(), path)

    def close(self) -> None:
        self.num_closed += 1


def train_normed(task: Normed, folder: Path, *, resume: bool = False) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    run = RunConfig(batch_size=8, max_device_batch=2, num_workers=0, log_every=1, ema_decay=0.5)
    return train_task(
        task,
        Processes(run, torch.device("cpu")),
        EngineConfig(run=run, optimizer=OptimizerConfig(lr=0.1), schedule=ScheduleConfig(epochs=2, warmup_epochs=1)),
        folder,
        resume_from=folder / "last.pt" if resume else None,
    )


def state(folder: Path) -> Any:
    return torch.load(folder / "last.pt", weights_only=True)


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize("interval", [1, 20])
@pytest.mark.parametrize("death", range(NUM_STEPS * PARTS, NUM_STEPS * PARTS + 6))
def test_a_stop_at_any_part_of_a_step_ends_behind_it_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int, interval: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_normed(Normed(), whole)
    # On a GPU, the run reads losses only after every few steps, and stops only at these steps.
    monkeypatch.setattr(_Loop, "interval", property(lambda _: interval, lambda *_: None), raising=False)
    with pytest.raises(Stopped):
        train_normed(Normed((death,)), cut)
    stopped = state(cut)
    step = stopped["position"]["step"]
    assert stopped["position"]["epoch"] == 1
    assert step == (death // PARTS + 1 - NUM_STEPS if interval == 1 else NUM_STEPS)
    # Each norm has processed every part of the finished steps exactly one time.
    assert stopped["model"]["0.num_batches_tracked"] == (NUM_STEPS + step) * PARTS
    assert stopped["position"]["losses"] == pytest.approx(sum(losses(whole)[NUM_STEPS + 1 :][:step]), rel=1e-12)
    train_normed(Normed(), cut, resume=True)
    assert losses(cut) == losses(whole)
    for one, other in zip(*(torch.utils._pytree.tree_leaves(state(folder)) for folder in (whole, cut)), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_the_readers_are_ended_and_started_anew_once(tmp_path: Path) -> None:
    task = Normed((5, 6))
    with pytest.raises(XCiTError, match=r"a process that reads data died \(DataLoader worker \(pid 7\)"):
        train_normed(task, tmp_path)
    assert task.num_closed == 2  # once in the middle, once at the end
    assert not (tmp_path / "last.pt").exists()


def test_without_a_signal_a_dead_reader_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"died .*Alarm clock.*: if memory was short, set run\.num_workers"):
        train_normed(Normed((13,), signalled=False), tmp_path)
    assert (state(tmp_path)["position"]["epoch"], state(tmp_path)["position"]["step"]) == (1, 0)


def test_readers_that_die_in_an_evaluation_stop_the_run_where_it_was_saved(tmp_path: Path) -> None:
    train_normed(Normed(), tmp_path / "whole")
    task = Normed()
    task.dies_in_evaluation = True
    with pytest.raises(Stopped, match="SIGTERM"):
        train_normed(task, tmp_path / "cut")
    assert (state(tmp_path / "cut")["position"]["epoch"], state(tmp_path / "cut")["position"]["step"]) == (0, NUM_STEPS)
    train_normed(Normed(), tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    task = Normed(signalled=False)
    task.dies_in_evaluation = True
    with pytest.raises(XCiTError, match="a process that reads data died"):
        train_normed(task, tmp_path / "killed")


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((2,), float(index))


class ReadByAnother(Normed):
    """A task with one data-reading process, which is killed during a step, after it has read the part of this step."""

    def train_batches(self, epoch: int, first_step: int) -> Iterator[Tensor]:
        loader = DataLoader(Numbers(), batch_size=2, num_workers=1, generator=torch.Generator())
        yield from loader

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        handler = signal.getsignal(signal.SIGCHLD)
        for child in multiprocessing.active_children():
            child.kill()
            time.sleep(0.5)  # a handler of SIGCHLD would report the death now
        assert signal.getsignal(signal.SIGCHLD) is handler
        return super().loss(model, batch)


def test_a_death_interrupts_no_step_but_is_met_when_more_is_asked_for(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(XCiTError, match="a process that reads data died"):
        train_normed(ReadByAnother(), tmp_path)
    after = signal.getsignal(signal.SIGCHLD)  # torch's handler, which it sets for its first worker
    assert after == before or "torch" in getattr(after, "__module__", "")
