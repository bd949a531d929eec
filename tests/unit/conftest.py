"""Fixtures for several test files: data in three colours, a model with random weights, published names."""

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig

COLOURS = {"blue": (30, 60, 200), "green": (30, 190, 60), "red": (210, 40, 30)}
NUM_A_CLASS = {"train": 6, "val": 3}


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Returns a context in which no file of this process can grow beyond a number of bytes, as on a full disk."""

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Writes six noisy pictures to each folder train/<class> and three to each val/<class>, in many sizes."""
    root, draw = tmp_path / "splits", np.random.default_rng(0)
    for split, count in NUM_A_CLASS.items():
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                noise = draw.normal(0, 30, (18 + index, 16, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def tiny() -> XCiT:
    """Returns a small backbone without a classifier, for images of 16 x 16 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(std=0.3)  # so large that features differ from image to image
    spec = Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3)
    model.info = ModelInfo(name="tiny", preprocessing=spec)
    return model


_FILE = Path(__file__).parents[1] / "data" / "dense_keys.json"

DENSE_ARCHITECTURES = {"tiny-12": (192, 12, 4), "small-12": (384, 12, 8), "small-24": (384, 24, 8)} | {
    "medium-24": (512, 24, 8)
}
"""Maps an architecture without its patch size to its width, depth and number of heads."""


def _size(text: str, width: int, num_heads: int) -> int:
    if text.isdigit():
        return int(text)
    if text == "M":
        return num_heads
    found = re.fullmatch(r"(\d*)D(?:/(\d+))?(?:\+(\d+))?", text)
    assert found is not None
    return int(found[1] or 1) * width // int(found[2] or 1) + int(found[3] or 0)


@pytest.fixture(scope="session")
def dense_keys() -> Callable[[str, str, int], dict[str, list[int]]]:
    """Returns `dense_keys(kind, architecture without patch size, patch size)`, which maps published names to shapes."""
    rows: dict[str, list[str]] = json.loads(_FILE.read_text())

    def expand(kind: str, architecture: str, patch_size: int) -> dict[str, list[int]]:
        width, depth, num_heads = DENSE_ARCHITECTURES[architecture]
        shapes: dict[str, list[int]] = {}
        for row in rows[f"{kind}-p{patch_size}"]:
            name, _, sizes = row.partition(" ")
            for index in range(depth if "{i}" in name else 1):
                shape = [_size(size, width, num_heads) for size in sizes.split(",")] if sizes else []
                shapes[name.replace("{i}", str(index))] = shape
        return shapes

    return expand
