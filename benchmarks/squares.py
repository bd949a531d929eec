"""A training run of seconds, for the benchmarks of training itself: noisy pictures of three colours, and a config."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.data.loader import AugmentationConfig
from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.models import Preprocessing, XCiTConfig
from xcit.tasks.classification import ClassificationConfig

COLOURS = {"blue": (30, 60, 200), "green": (30, 190, 60), "red": (210, 40, 30)}

HOLDOUT = 7
"""Images a run is watched by: a number that no even number of processes divides."""


def draw_squares(folder: Path, num_a_class: int) -> None:
    """Fills a folder with pictures by class."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(num_a_class):
            noise = draw.normal(0, 40, (20, 16 + index, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def squares_config(data: Path, *, epochs: int, run: dict[str, Any], draws_by_part: bool = True) -> ClassificationConfig:
    """A small model with all that draws at random; without `draws_by_part` what draws for a part of a batch is off."""
    mixed = {"mixup": 0.8, "cutmix": 1.0} if draws_by_part else {}
    return ClassificationConfig(
        name="squares",
        model=XCiTConfig(
            patch_size=8,
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=len(COLOURS),
            drop_path_rate=0.2 if draws_by_part else 0.0,
        ),
        preprocessing=Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3),
        data=str(data),
        holdout=HOLDOUT,
        augmentation=AugmentationConfig(
            rand_augment="rand-m7-mstd0.5-inc1", random_erasing=0.25, label_smoothing=0.1, **mixed
        ),
        optimizer=OptimizerConfig(lr=2e-3, clip_grad=1.0),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=1e-4),
        run=RunConfig(**{"batch_size": 8, "num_workers": 0, "ema_decay": 0.9, "log_every": 1} | run),
    )
