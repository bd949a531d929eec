"""Recipes: a table that maps each name to a function that returns a complete config. There are no config files."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xcit.config import from_dict, read_yaml
from xcit.errors import XCiTError
from xcit.training.recipes.detection import detection, pico_fashion_scenes
from xcit.training.recipes.dino import DINO_ARCHITECTURES, dino, dino_pico_fashion_mnist
from xcit.training.recipes.finetune import finetune_384, multi_label, transfer
from xcit.training.recipes.official import official, official_distilled
from xcit.training.recipes.packaged import pico_fashion_mnist
from xcit.training.recipes.published import published
from xcit.training.recipes.segmentation import segmentation, segmentation_fashion_scenes
from xcit.training.tasks.table import TASKS, TrainingConfig
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES
from xcit.zoo.detectors import DETECTORS
from xcit.zoo.segmenters import SEGMENTERS

_FAMILIES: dict[str, Callable[[str], TrainingConfig]] = {
    "8xb128_in1k": partial(published, image_size=224),
    "8xb128_in1k-384px": partial(published, image_size=384),
    "official_in1k": official,
    "official-dist_in1k": official_distilled,
    "ours-ft384_in1k": finetune_384,
    "transfer": transfer,
    "multi-label": multi_label,
}
"""Maps the last part of a recipe's name to a function that takes an architecture and returns the config.

The docstring of the function says which results to expect.
"""

RECIPES: dict[str, Callable[[], TrainingConfig]] = {
    **{
        f"xcit-{architecture}_{family}": partial(make, architecture)
        for family, make in _FAMILIES.items()
        for architecture in PUBLISHED_ARCHITECTURES
    },
    "xcit-pico-fashion-mnist": pico_fashion_mnist,
    **{f"dino_xcit-{architecture}_in1k": partial(dino, architecture) for architecture in DINO_ARCHITECTURES},
    "dino_xcit-pico_fashion-mnist": dino_pico_fashion_mnist,
    **{name: partial(detection, record.architecture) for name, record in DETECTORS.items()},
    "mask-rcnn_xcit-pico_fashion-scenes": pico_fashion_scenes,
    "upernet_xcit-pico_fashion-scenes": partial(segmentation_fashion_scenes, "upernet"),
    "sem-fpn_xcit-pico_fashion-scenes": partial(segmentation_fashion_scenes, "sem-fpn"),
    **{name: partial(segmentation, record.model.kind, record.architecture) for name, record in SEGMENTERS.items()},
}
"""Maps the name of every recipe to a function that returns its config."""


def get_recipe(name: str) -> TrainingConfig:
    """Returns the config for the name of a recipe, a run's YAML file, or the path of one of mmpretrain's configs.

    The path `configs/xcit/xcit-nano-12-p16_8xb128_in1k.py` means the recipe `xcit-nano-12-p16_8xb128_in1k`. No file is
    read, so the path need not exist.

    Raises:
        XCiTError: if there is no such recipe; the message suggests the nearest name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _load(path)
    wanted = path.stem if path.suffix == ".py" else name
    if wanted not in RECIPES:
        near = difflib.get_close_matches(wanted, RECIPES, n=1, cutoff=0.4)
        kinds = ", ".join(f"xcit-<architecture>_{family}" for family in _FAMILIES)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {kinds}; `xcit config` lists all"
        raise XCiTError(f"no recipe is called {wanted!r}; {hint}")
    return RECIPES[wanted]()


def _load(path: Path) -> TrainingConfig:
    """Reads the config in a YAML file. If the file has no field `task`, it is a classification config.

    Raises:
        XCiTError: if the file can't be read, its task is unknown, or a field is unknown or has another type.
    """
    values = read_yaml(path)
    task = values.get("task", "classification")
    if not isinstance(task, str) or task not in TASKS:
        raise XCiTError(f"{path}: no task is called {task!r}; the tasks are: {', '.join(TASKS)}")
    return from_dict(TASKS[task].config, values, where=f"{path}: ")
