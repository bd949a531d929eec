"""Tests FSDP2 in two processes, for every kind of task: the same weights as in one process, and an exact resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from squares import draw_squares, squares_config

from xcit.config import save_yaml
from xcit.training.engine.checkpoint import LAST, load_checkpoint

pytestmark = pytest.mark.timeout(1800)

RECIPES = {
    "sem-fpn": "sem-fpn_xcit-pico_fashion-scenes",
    "upernet": "upernet_xcit-pico_fashion-scenes",
    "detection": "mask-rcnn_xcit-pico_fashion-scenes",
}
RUN: dict[str, Any] = {
    "--run.batch_size": 4, "--run.max_device_batch": 2, "--run.num_workers": 0, "--run.log_every": 1,
    "--run.save_every_steps": 3, "--run.keep_checkpoints": 9, "--device": "cpu",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "--model.backbone.depth": 2, "--model.out_indices": "0,0,1,1", "--model.channels": 16, "--schedule.epochs": 1,
}  # fmt: skip
BY_TASK: dict[str, dict[str, Any]] = {
    "segmentation": {"--epoch_steps": 4, "--schedule.warmup_steps": 1},
    # A larger eps, because AdamW would turn rounding errors of gradients near 0 into full steps.
    "detection": {"--schedule.warmup_epochs": 0, "--optimizer.eps": 1e-3},
}

LIMIT = 2e-3
"""Limit of norm(difference from one process) / norm(tensor); norms of tensors below 0.001 count as 0.001."""


@pytest.mark.parametrize("kind", ["classification", "dino", *RECIPES])
def test_two_processes_that_shard_a_model_train_as_one_and_resume_bit_for_bit(
    start: Callable[..., Forked], request: pytest.FixtureRequest, kind: str
) -> None:
    def train(folder: str, processes: int, *arguments: object) -> None:
        fields = [word for pair in changes.items() for word in pair]
        done = start("-m", "xcit", "train", *recipe, "--out", folder, *fields, *arguments, processes=processes).finish()
        assert done.status == 0, done.out + done.err
        assert "Warning" not in done.err

    recipe: tuple[Any, ...]
    if kind in RECIPES:
        task = "detection" if kind == "detection" else "segmentation"
        recipe = (RECIPES[kind], "--data", request.getfixturevalue("make_scenes")(task, 16, 3))
        changes = RUN | SMALL | BY_TASK[task]
    else:
        draw_squares(Path("data"), 8)
        save_yaml(squares_config(kind, Path("data"), epochs=1, run={}), Path("squares.yaml"))
        recipe, changes = ("squares.yaml",), RUN
    train("one", 1)
    train("whole", 2, "--run.parallel", "fsdp2")
    train("resumed", 2, "--run.parallel", "fsdp2", "--resume", "whole/step-00000003.pt")

    one, whole, resumed = (load_checkpoint(Path(folder) / LAST) for folder in ("one", "whole", "resumed"))
    for name, tensor in one["model"].items():
        # Running statistics differ, because two processes average them. Key biases differ, because their true gradient
        # is 0 and they follow rounding errors.
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked", "attn.k.bias")):
            difference = (tensor - whole["model"][name]).norm() / tensor.norm().clamp(min=1e-3)
            assert difference < LIMIT, name
    assert same(whole, resumed)
    losses = [
        [line["loss"] for line in map(json.loads, Path(folder, "log.jsonl").read_text().splitlines())]
        for folder in ("whole", "resumed")
    ]
    assert losses[0][-len(losses[1]) :] == losses[1]


def same(one: object, other: object) -> bool:
    """Returns whether two checkpoints have the same contents, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
