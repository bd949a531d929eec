import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.draw.curves import draw_curves
from xcit.training.engine.log import read_log


def log_lines(num_epochs: int = 4, *, evaluate_every: int = 1, log_every: int = 2) -> list[dict[str, Any]]:
    """Returns a log of epochs of five steps."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, num_epochs + 1):
        for step in range(5 * epoch - 4, 5 * epoch + 1):
            if step % log_every == 0:
                lines.append({"kind": "step", "epoch": epoch, "step": step, "loss": 3 / step, "lr": 1e-3 / step})
        line = {"kind": "epoch", "epoch": epoch, "step": 5 * epoch, "loss": 0.6 / epoch, "lr": 2e-4 / epoch}
        line |= {"seconds": 3.0, "images_per_second": 200.0, "data_wait": 0.02}
        if evaluate_every and epoch % evaluate_every == 0:
            line |= {"top1": 90 - 40 / epoch, "top5": 99 - 9 / epoch, "val_loss": 0.3 + 1 / epoch}
        lines.append(line)
    return lines


def drawn(folder: Path, lines: Sequence[dict[str, Any] | str], title: str = "a run") -> np.ndarray:
    log, picture = folder / "log.jsonl", folder / "curves.png"
    log.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    draw_curves(read_log(log), picture, title)
    with Image.open(picture) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Returns the picture of `log_lines()`."""
    return drawn(tmp_path_factory.mktemp("usual"), log_lines())


@pytest.mark.parametrize(
    ("lines", "num_rows"),
    [
        (log_lines(1), 2),
        (log_lines(100, evaluate_every=3), 2),
        (log_lines(evaluate_every=0), 1),
        (log_lines(1, log_every=50), 2),
        (log_lines()[:1], 1),  # stopped in the first epoch
        ([line | {"top5": None, "mIoU": 3.0, "x": 1, "aux_loss": 1.0} for line in log_lines(1)[2:]], 3),
    ],
    ids=["one epoch", "third epochs", "no figures", "no steps", "one step", "more figures"],
)
def test_draws_any_log(tmp_path: Path, lines: list[dict[str, Any]], num_rows: int) -> None:
    picture = drawn(tmp_path, lines)
    assert picture.shape[0] == pytest.approx(110 * (0.5 + 3.1 * num_rows), abs=1)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("name", ["loss", "lr", "top1", "top5", "val_loss"])
def test_shows_each_number(tmp_path: Path, usual: np.ndarray, name: str) -> None:
    lines = [line | {name: 2 * line[name]} if name in line and line["step"] > 7 else line for line in log_lines()]
    assert not np.array_equal(drawn(tmp_path, lines), usual)


def test_speed_is_not_shown(tmp_path: Path, usual: np.ndarray) -> None:
    lines = [line | {"seconds": 5.0, "images_per_second": 1.0, "data_wait": 0.5} for line in log_lines()]
    assert np.array_equal(drawn(tmp_path, lines), usual)


def test_the_title_is_shown_as_text_not_as_a_formula(tmp_path: Path, usual: np.ndarray) -> None:
    assert not np.array_equal(drawn(tmp_path, log_lines(), r"$\wrong$"), usual)


def test_lines_that_were_cut_off_or_are_of_other_kinds_are_left_out(tmp_path: Path, usual: np.ndarray) -> None:
    others: list[dict[str, Any] | str] = [{"kind": "resumed", "step": 3}, {"step": 4}, "[1]\n", "7\n", "\n"]
    cut = '{"kind": "epoch", "epoch": 1, "step": 21, "loss"'
    assert np.array_equal(drawn(tmp_path, [*others, *log_lines(), cut]), usual)


def test_a_line_that_was_cut_off_costs_the_one_after_it_at_most(tmp_path: Path) -> None:
    lines = log_lines(evaluate_every=0)
    went_on = drawn(tmp_path, [*lines[:4], '{"kind": "st', *lines[5:]])
    assert np.array_equal(went_on, drawn(tmp_path, [*lines[:4], *lines[6:]]))


def test_of_a_part_that_was_logged_twice_the_later_lines_count(tmp_path: Path, usual: np.ndarray) -> None:
    lines = log_lines()
    lost = [line | {"loss": 100.0, "lr": 1.0} for line in lines[3:5]]
    assert np.array_equal(drawn(tmp_path, [*lines[:3], *lost, *lines[3:]]), usual)


def test_without_lines_there_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    draw_curves(read_log(tmp_path / "log.jsonl"), tmp_path / "curves.png", "a run")
    assert not (tmp_path / "curves.png").exists()
