"""What tests of features are made on: three colours in two splits, and a model of random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.models import ModelInfo, Preprocessing, XCiT, XCiTConfig

COLOURS = {"blue": (30, 60, 200), "green": (30, 190, 60), "red": (210, 40, 30)}
NUM_A_CLASS = {"train": 6, "val": 3}


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """train/<class> with six and val/<class> with three noisy pictures, of many sizes."""
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
    """A backbone without a classifier, with the preprocessing of images of 16 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)).eval()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data.normal_(std=0.3)  # large enough that features differ from image to image
    spec = Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3)
    model.info = ModelInfo(name="tiny", preprocessing=spec)
    return model
