"""Data and configs of training runs that take a few seconds: noisy pictures in three colours as classes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xcit.data.loader import AugmentationConfig
from xcit.data.multi_crop import MultiCropConfig
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.models.dino import DINOHeadConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.dino import DINOConfig, TeachingConfig
from xcit.training.tasks.table import TrainingConfig

COLOURS = {"blue": (30, 60, 200), "green": (30, 190, 60), "red": (210, 40, 30)}

TASKS = ("classification", "dino")

HOLDOUT = 7
"""Number of validation images. It is odd, so that two processes have different numbers of images."""


def draw_squares(folder: Path, num_a_class: int) -> None:
    """Writes pictures to one folder per class."""
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(num_a_class):
            noise = draw.normal(0, 40, (20, 16 + index, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def num_training_images(task: str, num_a_class: int) -> int:
    """Returns the number of training images: for DINO all images, for classification all but the validation images."""
    return len(COLOURS) * num_a_class - (HOLDOUT if task == "classification" else 0)


def squares_config(
    task: str, data: Path, *, epochs: int, run: dict[str, Any], draws_by_part: bool = True
) -> TrainingConfig:
    """Returns the config of a small model. Its training has random draws of all kinds.

    If `draws_by_part` is false, Mixup, CutMix and stochastic depth are off: their draws depend on the part of a batch.
    """
    make = {"classification": _classification, "dino": _dino}[task]
    return make(data, epochs, {"batch_size": 8, "num_workers": 0, "log_every": 1} | run, draws_by_part)


def _classification(data: Path, epochs: int, run: dict[str, Any], draws_by_part: bool) -> ClassificationConfig:
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
        run=RunConfig(**{"ema_decay": 0.9} | run),
    )


def _dino(data: Path, epochs: int, run: dict[str, Any], draws_by_part: bool) -> DINOConfig:
    return DINOConfig(
        name="dino-squares",
        model=XCiTConfig(
            patch_size=4,  # with one token, queries and keys would be 1 or -1, and their gradients rounding errors
            embed_dim=16,
            depth=2,
            num_heads=2,
            num_classes=0,
            drop_path_rate=0.2 if draws_by_part else 0.0,
        ),
        preprocessing=Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3),
        data=str(data),
        num_watched=HOLDOUT,
        head=DINOHeadConfig(out_dim=64, hidden_dim=32, bottleneck_dim=16),
        crops=MultiCropConfig(num_local=3, local_size=8),
        dino=TeachingConfig(first_teacher_temperature=0.03, warmup_epochs=2),
        optimizer=OptimizerConfig(
            lr=2e-3,
            weight_decay=0.04,
            final_weight_decay=0.4,
            clip_grad=0.3,
            clip_mode="each",
            eps=1e-5,  # without it, AdamW turns rounding errors of zero gradients into full steps
        ),
        schedule=ScheduleConfig(epochs=epochs, warmup_epochs=1, warmup_lr=0.0),
        run=RunConfig(**run),
    )
