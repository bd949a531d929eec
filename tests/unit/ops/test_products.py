"""Products by oneDNN: the same numbers, and only where nothing but the product is wanted."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from xcit.models.layers import MLP
from xcit.ops import products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_onednn_faster", lambda: request.param)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("shape", [(50, 24), (3, 20, 24), (2, 4, 5, 24), (1, 24), (0, 24)])
def test_products_are_those_of_float64(shape: tuple[int, ...]) -> None:
    rows, weight, bias = draw(*shape), draw(12, 24), draw(12)
    wide = F.linear(rows.double(), weight.double(), bias.double())
    close(products.linear(rows, weight, bias), wide)
    close(products.linear(rows, weight), wide - bias.double())
    close(products.linear(rows, weight, bias, gelu=True), F.gelu(wide))
    close(products.linear(rows.transpose(0, -1).contiguous().transpose(0, -1), weight, bias), wide)


@pytest.mark.usefixtures("_by")
def test_weights_and_biases_of_any_strides() -> None:
    rows, weight, wide_bias = draw(40, 24), draw(24, 12).T, draw(12, 3)
    for bias in (wide_bias[:, 1], draw(1).expand(12)):
        close(products.linear(rows, weight, bias), F.linear(rows.double(), weight.double(), bias.double()))
        close(products.linear(rows[::2], draw(12, 48)[:, ::2], bias).float(), F.linear(
            rows[::2].double(), draw(12, 48)[:, ::2].double(), bias.double()
        ))  # fmt: skip


def test_torch_fx_traces_a_product() -> None:
    mlp = MLP(8, 16).eval()
    tokens = draw(40, 8)
    torch.testing.assert_close(torch.fx.symbolic_trace(mlp, concrete_args={"scale": None})(tokens, None), mlp(tokens))


@pytest.mark.usefixtures("_by")
def test_products_of_each_image() -> None:
    tokens, matrix, row = draw(3, 40, 24), draw(3, 24, 12), draw(3, 1, 12)
    close(products.affine(tokens, matrix, row), tokens.double() @ matrix.double() + row.double())
    close(products.gram_matrix(tokens), tokens.double().mT @ tokens.double())


class _Marked(Tensor):
    pass


@contextmanager
def without_onednn() -> Iterator[None]:
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize(
    ("around", "change", "chosen"),
    [
        (nullcontext, {}, True),
        (torch.inference_mode, {}, True),
        (torch.no_grad, {"weight": nn.Parameter(draw(12, 24))}, True),
        (nullcontext, {"weight": nn.Parameter(draw(12, 24))}, False),
        (nullcontext, {"rows": draw(40, 24).requires_grad_()}, False),
        (nullcontext, {"rows": draw(15, 24)}, False),
        (nullcontext, {"rows": draw(40, 24).as_subclass(_Marked)}, False),
        (nullcontext, {"rows": draw(40, 24).double()}, False),
        (nullcontext, {"rows": draw(40, 24).bfloat16()}, False),
        (nullcontext, {"rows": draw(40, 24).to("meta")}, False),
        (nullcontext, {"bias": draw(12).half()}, False),
        (forward_ad.dual_level, {}, False),
        (lambda: torch.autocast("cpu", torch.bfloat16), {}, False),
        (lambda: FlopCounterMode(display=False), {}, False),
        (without_onednn, {}, False),
    ],
)
def test_onednn_is_only_for_the_product_itself(
    around: Any, change: dict[str, Tensor], chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_is_onednn_faster", lambda: True)
    given = {"rows": draw(40, 24), "weight": draw(12, 24), "bias": draw(12)} | change
    context: AbstractContextManager[Any] = around()
    with context:
        assert products._is_for_onednn(*given.values()) == chosen


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # from torch's own make_dual
def test_derivatives_and_batches_of_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_is_onednn_faster", lambda: True)
    rows, weight = draw(40, 24), draw(12, 24)
    grads = torch.func.grad(lambda given: products.linear(given, weight).square().sum())(rows)
    torch.testing.assert_close(grads, 2 * (rows @ weight.T) @ weight)
    mapped = torch.func.vmap(lambda one: products.linear(one, weight, gelu=True))(draw(3, 40, 24))
    torch.testing.assert_close(mapped, F.gelu(draw(3, 40, 24) @ weight.T))
    with forward_ad.dual_level():
        dual = products.linear(forward_ad.make_dual(rows, torch.ones_like(rows)), weight)
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, torch.ones_like(rows) @ weight.T)
    rows.requires_grad_()
    products.gram_matrix(rows[None]).sum().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
