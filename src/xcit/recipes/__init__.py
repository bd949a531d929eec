"""Recipes: a name to a full config. The names come from one table, not from a file each."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from xcit.engine.config import load_yaml
from xcit.errors import XCiTError
from xcit.recipes.finetune import finetune_384, transfer
from xcit.recipes.official import official, official_distilled
from xcit.recipes.packaged import pico_fashion_mnist
from xcit.recipes.published import published
from xcit.tasks.classification import ClassificationConfig
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES

_FAMILIES: dict[str, Callable[[str], ClassificationConfig]] = {
    "8xb128_in1k": partial(published, image_size=224),
    "8xb128_in1k-384px": partial(published, image_size=384),
    "official_in1k": official,
    "official-dist_in1k": official_distilled,
    "ours-ft384_in1k": finetune_384,
    "transfer": transfer,
}
"""The last part of a name to its function of the architecture; the functions' docstrings say what to expect."""

RECIPES: dict[str, Callable[[], ClassificationConfig]] = {
    f"xcit-{architecture}_{family}": partial(make, architecture)
    for family, make in _FAMILIES.items()
    for architecture in PUBLISHED_ARCHITECTURES
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
        kinds = ", ".join(f"xcit-<architecture>_{family}" for family in _FAMILIES)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {kinds}, xcit-pico-fashion-mnist"
        raise XCiTError(f"no recipe is called {wanted!r}; {hint}")
    return RECIPES[wanted]()
