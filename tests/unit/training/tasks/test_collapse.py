"""Tests the signs of a collapse, with hand-made figures and in runs that are made to collapse."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.data.multi_crop import MultiCropConfig
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.models.dino import DINOHeadConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.loop import train_task
from xcit.training.tasks.collapse import CollapseWatch, feature_spread
from xcit.training.tasks.dino import DINOConfig, DINOTask, TeachingConfig

GOOD = {"teacher_entropy": 3.0, "teacher_student_kl": 1.0, "feature_spread": 0.6}
NUM_OUTPUTS = 100


def warnings_of(*steps: tuple[int, dict[str, float]]) -> list[str]:
    watch = CollapseWatch(NUM_OUTPUTS)
    lines, step = [], 0
    for count, losses in steps:
        for _ in range(count):
            lines += watch.look(step, losses)
            step += 1
    return lines


def test_spread_of_features() -> None:
    torch.manual_seed(0)
    assert feature_spread(torch.randn(2000, 32)).item() == pytest.approx(1, abs=0.01)
    assert feature_spread(torch.ones(5, 32)).item() == pytest.approx(0, abs=1e-6)
    one = torch.randn(1, 32)
    assert feature_spread(one * torch.rand(50, 1)).item() == pytest.approx(0, abs=1e-6), "lengths do not count"
    near = one + 0.1 * torch.randn(2000, 32)
    assert feature_spread(near).item() == pytest.approx(0.1 / one.square().mean().sqrt().item(), rel=0.1)


def test_a_healthy_run_is_not_warned_of() -> None:
    assert warnings_of((500, GOOD)) == []
    # At the start of every run, the centre removes what all outputs have in common, so the divergence is about 0.
    assert warnings_of((30, GOOD | {"teacher_student_kl": 0.0}), (500, GOOD)) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"feature_spread": 0.01},
            "the teacher's features were nearly the same for all images (spread 0.010 of 1): try a lower "
            "optimizer.lr or more schedule.warmup_epochs",
        ),
        (
            {"teacher_student_kl": 0.001, "teacher_entropy": math.log(NUM_OUTPUTS)},
            "teacher and student gave the same output for all images (divergence 0.001 nats); the output was nearly "
            "uniform (entropy 4.61 of 4.61): try a lower dino.teacher_temperature",
        ),
        (
            {"teacher_student_kl": 0.001, "teacher_entropy": 0.02},
            "teacher and student gave the same output for all images (divergence 0.001 nats); few entries dominated "
            "the output (entropy 0.02): try a lower dino.center_momentum",
        ),
    ],
)
def test_a_collapse_is_told_once_each_time_it_comes(changes: dict[str, float], told: str) -> None:
    (line,) = warnings_of((50, GOOD | changes), (200, GOOD | changes))
    assert line == f"warning: collapse: over the last 50 steps, to step 50, {told}"
    assert len(warnings_of((300, GOOD | changes), (300, GOOD), (300, GOOD | changes))) == 2


# A center_momentum of 1 keeps the centre at 0 (no centring); a temperature of 1 means no sharpening.
@pytest.mark.parametrize("changes", [{"center_momentum": 1.0}, {"teacher_temperature": 1.0}], ids=str)
def test_a_run_that_collapses_says_so(tmp_path: Path, changes: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(draw.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    config = DINOConfig(
        name="collapse",
        model=XCiTConfig(patch_size=8, embed_dim=8, depth=1, num_heads=2, cls_depth=1, num_classes=0, in_channels=1),
        preprocessing=Preprocessing(image_size=16, resize_to=16, mean=(0.5,), std=(0.3,)),
        data=str(tmp_path),
        num_watched=2,
        head=DINOHeadConfig(out_dim=32, hidden_dim=16, bottleneck_dim=8),
        crops=MultiCropConfig(num_local=0),
        dino=TeachingConfig(teacher_momentum=0.9, **changes),
        optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=1),
        run=RunConfig(batch_size=4, num_workers=0, evaluate_every=30),
    )
    lines: list[str] = []
    processes = Processes(config.run, torch.device("cpu"))
    train_task(
        DINOTask(config, processes.layout),
        processes,
        config,
        tmp_path,
        announce=lines.append,
    )
    assert [line[:17] for line in lines if line.startswith("warning")] == ["warning: collapse"]
