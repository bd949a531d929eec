"""Tests the errors of every kind of model for images that it does not accept."""

from typing import Any

import numpy as np
import pytest
import small_models
import torch

from xcit.errors import XCiTError

BATCHES = {
    "numpy": (np.zeros((1, 3, 32, 32), np.float32), "must be a tensor (batch, 3, height, width), not ndarray"),
    "uint8": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "must be floating-point and normalised, not uint8"),
    "int64": (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "must be floating-point and normalised, not int64"),
    "channels last": (torch.zeros(1, 32, 48, 3), "images have 32 channels, the model takes 3: they are (1, 32, 48, 3)"),
    "one image": (torch.zeros(3, 32, 32), "not (3, 32, 32): images[None] is a batch of one"),
    "no batch": (torch.zeros(32, 32), "must be (batch, 3, height, width), not (32, 32)"),
    "empty": (torch.zeros(0, 3, 32, 32), "the batch is empty: (0, 3, 32, 32)"),
}

IMAGES = {
    "numpy": (np.zeros((3, 32, 32), np.float32), "a tensor (3, height, width), not ndarray"),
    "channels last": (torch.zeros(32, 48, 3), "not (32, 48, 3): image.permute(2, 0, 1) puts the channels first"),
    "int64": (torch.zeros(3, 32, 32, dtype=torch.int64), "uint8, or floating-point in 0..1, not torch.int64"),
    "empty": (torch.zeros(3, 0, 32), "not (3, 0, 32)"),
}
"""Wrong images for a detector (its input is a list of images), and the error messages."""


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in small_models.KINDS if kind not in ("dino", "detector")])
def test_a_batch_that_is_none(kind, fused, name):
    model: Any = small_models.build(kind)
    batch, message = BATCHES[name]
    with pytest.raises(XCiTError) as caught:
        (model.fuse() if fused else model)(batch)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none(name):
    image, message = IMAGES[name]
    with pytest.raises(XCiTError) as caught:
        small_models.build("detector")([image])
    assert message in str(caught.value)


def test_nothing_to_learn_from():
    with pytest.raises(XCiTError, match=r"^the batch is empty"):
        small_models.build("detector").train()([], [])
