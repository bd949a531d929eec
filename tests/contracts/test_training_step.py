"""Tests a training step of every published architecture: forward and backward pass, gradient clipping and AdamW."""

import pytest
import torch
import torch.nn.functional as F

from xcit import XCiT
from xcit.training.engine.config import OptimizerConfig
from xcit.training.engine.optimizer import build_optimizer
from xcit.zoo.architectures import PUBLISHED_ARCHITECTURES


@pytest.mark.parametrize("architecture", PUBLISHED_ARCHITECTURES)
def test_a_step_moves_every_parameter(architecture: str) -> None:
    config = PUBLISHED_ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = XCiT(config).train()
    # With LayerScale values of 1e-5, some gradients would be too small to change a weight in float32.
    for name, parameter in model.named_parameters():
        if ".scale_" in name:
            torch.nn.init.ones_(parameter)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3))
    images = torch.randn(2, 3, 2 * config.patch_size, 2 * config.patch_size)
    loss = F.cross_entropy(model(images), torch.tensor([1, 2]))
    loss.backward()
    assert loss.isfinite()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    before = {name: parameter.detach()[..., :1].clone() for name, parameter in model.named_parameters()}
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    # AdamW's first step changes each weight by the learning rate, independent of the gradient's size. A gradient of 0
    # is an exception: the key biases of class attention have a true gradient of 0.
    still = [
        name
        for name, parameter in model.named_parameters()
        if torch.equal(parameter.detach()[..., :1], before[name]) and not name.endswith("attn.k.bias")
    ]
    assert not still
