"""Helpers for tests of streaming: models with random weights, images, and results for the whole image in float64."""

import numpy as np
import torch
from torch import Tensor

from xcit.images.rows import Pixels
from xcit.models import ModelInfo, Preprocessing, XCiT, XCiTConfig

SPEC = Preprocessing(mean=(0.4, 0.5, 0.3), std=(0.3, 0.2, 0.25))


def random_model(config: XCiTConfig) -> XCiT:
    """Returns a model in evaluation mode in which all weights are random and large enough to change the outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XCiT(config).eval()
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "running_var" not in name:
                value.add_(torch.randn_like(value) * 0.2)
            elif value.is_floating_point():
                value.uniform_(0.5, 2)
    model.info = ModelInfo(name="random", preprocessing=SPEC)
    return model


def in_float64(model: XCiT, pixels: Pixels) -> tuple[XCiT, Tensor]:
    """Returns a copy of the model and the whole normalised image, both in float64."""
    exact = XCiT(model.config).eval()
    exact.load_state_dict(model.state_dict())
    image = torch.from_numpy(pixels.astype(np.float64) / 255).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (SPEC.mean, SPEC.std))
    return exact.double(), (image - mean) / std


def share_of_largest(actual: Tensor | np.ndarray, expected: Tensor) -> float:
    """Returns the largest absolute difference, divided by the largest absolute element of the expected tensor."""
    assert actual.shape == expected.shape
    difference = torch.as_tensor(actual).double() - expected.double()
    return float(difference.abs().max() / expected.abs().max())


def picture(height: int, width: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
