"""Recipes: a name to a full config. The published names come from one table, not from a file each."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xcit.data.loader import AugmentationConfig
from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig, load_yaml
from xcit.errors import XCiTError
from xcit.models import Preprocessing, published_preprocessing
from xcit.tasks.classification import ClassificationConfig
from xcit.zoo.architectures import ARCHITECTURES, PUBLISHED_ARCHITECTURES


def published(architecture: str, image_size: int) -> ClassificationConfig:
    """Mmpretrain's schedule for ImageNet-1k: 300 epochs at a global batch of 1024.

    At 384 pixels there is neither RandAugment nor erasing. Top-1 to expect: see `xcit info`; the published figures were
    reached by the authors' own longer schedule.
    """
    strong = image_size == 224
    return ClassificationConfig(
        name=f"xcit-{architecture}_8xb128_in1k{'' if strong else '-384px'}",
        model=ARCHITECTURES[architecture],
        preprocessing=published_preprocessing("mmpretrain", image_size),
        augmentation=AugmentationConfig(
            rand_augment="rand-m9-n2-mstd0.5-inc1" if strong else "",
            random_erasing=0.25 if strong else 0.0,
            mixup=0.8,
            cutmix=1.0,
        ),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5),
        run=RunConfig(batch_size=1024),
    )


def pico_fashion_mnist() -> ClassificationConfig:
    """The packaged model: 0.4 M parameters on Fashion-MNIST, for two processor cores and an hour or two.

    Its card tells the command, the time and the figure.
    """
    return ClassificationConfig(
        name="xcit-pico-fashion-mnist",
        model=ARCHITECTURES["pico-6-p4"],
        preprocessing=Preprocessing(image_size=28, resize_to=28, mean=(0.2860,), std=(0.3530,)),
        data="fashion-mnist",
        holdout=5000,
        augmentation=AugmentationConfig(crop="padded", padding=1, random_erasing=0.1, label_smoothing=0.1),
        optimizer=OptimizerConfig(lr=1.5e-3, weight_decay=0.05, clip_grad=1.0),
        schedule=ScheduleConfig(epochs=18, warmup_epochs=1, warmup_lr=1e-6, min_lr=1e-6),
        run=RunConfig(batch_size=128, ema_decay=0.999, num_workers=1, evaluate_every=3),
    )


RECIPES: dict[str, Callable[[], ClassificationConfig]] = {
    f"xcit-{architecture}_8xb128_in1k{'' if image_size == 224 else '-384px'}": partial(
        published, architecture, image_size
    )
    for architecture in PUBLISHED_ARCHITECTURES
    for image_size in (224, 384)
} | {"xcit-pico-fashion-mnist": pico_fashion_mnist}
"""Every recipe, by name."""


def get_recipe(name: str) -> ClassificationConfig:
    """The config of a recipe, of a run's YAML file, or of a path as people have it in their scripts.

    `configs/xcit/xcit-nano-12-p16_8xb128_in1k.py` means the recipe of that name; no such file need exist, and none is
    run.

    Raises:
        XCiTError: if there is no such recipe; the nearest is suggested.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return load_yaml(ClassificationConfig, path)
    wanted = path.stem if path.suffix == ".py" else name
    if wanted not in RECIPES:
        near = difflib.get_close_matches(wanted, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(RECIPES)}"
        raise XCiTError(f"no recipe is called {wanted!r}; {hint}")
    return RECIPES[wanted]()
