"""Tests the log of a run, and trackers such as TensorBoard."""

import json
from pathlib import Path

import pytest

from xcit.errors import XCiTError
from xcit.training.engine.config import RunConfig
from xcit.training.engine.log import RunLog, check_trackers, read_log

LINES = [
    {"kind": "step", "epoch": 1, "step": 2, "loss": 3.0},
    {"kind": "step", "epoch": 1, "step": 4, "loss": 2.0},
    {"kind": "epoch", "epoch": 1, "step": 4, "loss": 2.5, "top1": 50.0},
    {"kind": "step", "epoch": 2, "step": 6, "loss": 1.0},
]


def write(folder: Path) -> RunLog:
    log = RunLog(folder, RunConfig())
    for line in LINES:
        log.write(line)
    return log


def test_lines_come_back(tmp_path: Path) -> None:
    log = write(tmp_path)
    assert read_log(log.path) == LINES


@pytest.mark.parametrize(
    ("epochs", "steps", "kept"), [(0, 0, []), (0, 3, [0]), (0, 4, [0, 1]), (1, 4, [0, 1, 2]), (1, 6, [0, 1, 2, 3])]
)
def test_a_run_that_goes_on_rewinds_to_its_checkpoint(tmp_path: Path, epochs: int, steps: int, kept: list[int]) -> None:
    log = write(tmp_path)
    log.rewind(epochs=epochs, steps=steps)
    assert read_log(log.path) == [LINES[index] for index in kept]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    log = write(tmp_path)
    with log.path.open("a") as file:
        file.write(json.dumps(LINES[0])[:20])
    assert read_log(log.path) == LINES
    log.rewind(epochs=1, steps=6)
    assert read_log(log.path) == LINES


def test_nothing_to_rewind(tmp_path: Path) -> None:
    RunLog(tmp_path, RunConfig()).rewind(epochs=0, steps=0)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(XCiTError, match=r"log\.jsonl: could not be written: "):
        RunLog(tmp_path, RunConfig()).write(LINES[0])


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcit.training.engine.log.find_spec", lambda name: None)
    with pytest.raises(XCiTError, match=r"run\.trackers: wandb is not installed: pip install wandb"):
        check_trackers(RunConfig(trackers=("wandb",)))


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, RunConfig(trackers=("tensorboard",)))
    for line in LINES:
        log.write(line)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(2, 3.0), (4, 2.0), (6, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == [(4, 50.0)]
