"""Tests that `fuse()` refuses a model with a changed module, and names the module; the head may be any module."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import build
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from xcit.errors import XCiTError


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any) -> Any:
        return self.inner(*inputs)


def _wrap(model: Any) -> None:
    model.blocks[1] = Wrapped(model.blocks[1])


def _replace(model: Any) -> None:
    model.blocks[1] = nn.Linear(16, 16)


def _parametrise(model: Any) -> None:
    parametrize.register_parametrization(model.blocks[0].xca.proj, "weight", Doubled())


def _hook(model: Any) -> None:
    model.cls_blocks[0].attn.k.register_forward_hook(lambda *_: None)


def _prune(model: Any) -> None:
    prune.l1_unstructured(model.blocks[0].mlp.fc1, "weight", amount=0.5)


def _patch(model: Any) -> None:
    model.blocks[0].lpi.forward = lambda tokens, height, width, scale=None: tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrap, r"can't fuse: blocks\.1 is a Wrapped"),
        (_replace, r"can't fuse: blocks\.1 is a Linear"),
        (_parametrise, r"can't fuse: blocks\.0\.xca\.proj is a ParametrizedLinear"),
        (_hook, r"can't fuse: cls_blocks\.0\.attn\.k has hooks"),
        (_prune, r"can't fuse: blocks\.0\.mlp\.fc1 has hooks"),
        (_patch, r"can't fuse: blocks\.0\.lpi has hooks"),
    ],
)
def test_fuse_names_what_it_would_leave_out(change: Callable[[Any], None], message: str) -> None:
    model: Any = build("classifier")
    change(model)
    with pytest.raises(XCiTError, match=message) as error:
        model.fuse()
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_a_head_of_ones_own_is_fused_around() -> None:
    model: Any = build("classifier")
    model.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3))
    model.head[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    images = torch.rand(2, 3, 32, 40)
    torch.testing.assert_close(model.fuse()(images), model(images), rtol=1e-4, atol=1e-4)
