"""Compares models that run the Triton kernels with plain models, on a GPU or, if enabled, in Triton's interpreter."""

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")

from gpu.kernels.use import GramKernelBlock, KernelBlock, KernelLPI, use_kernels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _exact_convolutions() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def model() -> XCiT:
    """Returns a model of two blocks in which all parameters are random.

    Initial values such as 0 and 1 could hide a wrong use of a parameter."""
    torch.manual_seed(0)
    config = XCiTConfig(patch_size=8, embed_dim=12, depth=2, num_heads=3, cls_depth=1, num_classes=5)
    model = XCiT(config).to(DEVICE)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
            else:
                value.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return model


def images(batch: int = 1) -> Tensor:
    """Returns images of 2 x 3 patches; the last patch of each row and column is incomplete."""
    return torch.randn(batch, 3, 14, 23, device=DEVICE)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("gram", [False, True])
def test_a_fused_model_gives_the_same(model: XCiT, gram: bool) -> None:
    batch = images()
    with torch.no_grad():
        expected = model.eval()(batch)
        fused = model.fuse()
        use_kernels(fused, gram=gram)
        assert {type(block) for block in fused.blocks} == {GramKernelBlock if gram else KernelBlock}
        assert distance(fused(batch), expected) < 1e-5


def test_a_fused_model_in_low_precision(model: XCiT) -> None:
    batch = images()
    with torch.no_grad():
        expected = model.eval()(batch)
        fused = model.fuse().bfloat16()
        use_kernels(fused, gram=True)
        assert distance(fused(batch.bfloat16()), expected) < 3e-2


def test_tokens_in_parts_go_the_plain_way(model: XCiT, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images()
    with torch.no_grad():
        expected = model.eval()(batch)
        fused = model.fuse()
        use_kernels(fused)
        monkeypatch.setattr("xcit.models.fused.NUMBERS_AT_ONCE", {"cpu": 24, "cuda": 24})
        assert distance(fused(batch), expected) < 1e-5


def step(model: XCiT, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(batch)
    (logits * torch.arange(5, device=DEVICE)).sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    return logits.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_gives_the_same(model: XCiT, checkpointing: bool) -> None:
    other = copy.deepcopy(model)
    batch = images()
    use_kernels(other)
    assert {type(block.lpi) for block in other.blocks} == {KernelLPI}
    other.set_grad_checkpointing(checkpointing)
    expected, expected_grads = step(model.train(), batch)
    logits, grads = step(other.train(), batch)
    assert distance(logits, expected) < 1e-5
    whole = torch.cat([value.flatten() for value in expected_grads.values()])
    assert distance(torch.cat([grads[name].flatten() for name in expected_grads]), whole) < 1e-4
    assert list(other.state_dict()) == list(model.state_dict())
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(buffer, dict(model.named_buffers())[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # evaluation mode: each model uses its own running statistics
        assert distance(other.eval()(batch), model.eval()(batch)) < 1e-4


def test_what_can_not_use_them(model: XCiT) -> None:
    with pytest.raises(XCiTError, match="found no fused XCA blocks"):
        use_kernels(model, gram=True)
    use_kernels(model)
    with pytest.raises(XCiTError, match="without kernels in XCiT"):
        use_kernels(model)
