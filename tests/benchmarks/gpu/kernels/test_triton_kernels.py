"""Compares the Triton kernels with the reference in float64, on a GPU or, if enabled, in Triton's interpreter.

The interpreter (TRITON_INTERPRET=1) needs tensors on the CPU, and takes tens of milliseconds for a row of an image. So
it tests only the smallest shapes that include every kind of edge. tests/benchmarks/gpu/test_interpreter.py runs these
tests in the interpreter.
"""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.ops import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or Triton's interpreter", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl  # noqa: E402
from gpu.kernels import tiles  # noqa: E402
from gpu.kernels.gram import normalised_gram  # noqa: E402
from gpu.kernels.lpi import lpi  # noqa: E402
from gpu.kernels.lpi_training import lpi_training  # noqa: E402
from gpu.kernels.rows import gelu_and_slope  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LAYER_NORM_EPS, BATCH_NORM_EPS = 1e-6, 1e-5

# The interpreter truncates float32 to bfloat16; a GPU rounds it.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

# (B, H, W, D): one token; two tiles of rows; two strips and two blocks of channels, of which the last is incomplete.
IMAGES = [(1, 1, 1, 5), (1, 5, 2, 3), (1, 2, 9, 3), (1, 1, 3, 66)]
# (B, N, D): one token; three incomplete tiles with N split among programs; one complete tile.
TOKENS = [(1, 1, 5), (2, 70, 66), (1, 65, 128)]
if not INTERPRETED:
    IMAGES += [(4, 14, 14, 384), (2, 28, 28, 192), (1, 37, 53, 130), (3, 7, 7, 768), (64, 28, 28, 128)]
    TOKENS += [(4, 196, 384), (2, 784, 192), (64, 49, 512), (1, 16384, 128), (3, 1000, 770)]
DTYPES = [torch.bfloat16, torch.float16]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def assert_near(out: Tensor, expected: Tensor, tolerance: float) -> None:
    """Checks that no element differs by more than the tolerance times the largest element."""
    assert out.shape == expected.shape
    error = (out.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert error <= tolerance, f"off by {error:.1e} of the largest number"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def as_image(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.mT.unflatten(2, (height, width))


def convolutions(dim: int) -> dict[str, Tensor]:
    return {
        "conv1_weight": normal(dim, 1, 3, 3),
        "conv1_bias": normal(dim),
        "conv2_weight": normal(dim, 1, 3, 3),
        "conv2_bias": normal(dim),
    }


def check_lpi(batch: int, height: int, width: int, dim: int, dtype: torch.dtype) -> None:
    tokens = normal(batch, height * width, dim).to(dtype)
    layer_norm = {"weight": normal(dim), "bias": normal(dim)}
    scale, shift = normal(dim), normal(dim)
    weights = convolutions(dim)
    affine = nn.BatchNorm2d(dim, eps=0, device=DEVICE, dtype=torch.float64).eval()
    with torch.no_grad():
        affine.weight.copy_(scale)
        affine.bias.copy_(shift)
        normed = F.layer_norm(
            tokens.double(), (dim,), layer_norm["weight"].double(), layer_norm["bias"].double(), LAYER_NORM_EPS
        )
        doubles = {name: value.double() for name, value in weights.items()}
        branch = reference.lpi(as_image(normed, height, width), norm=affine, **doubles).flatten(2).mT

        out = lpi(
            tokens,
            height,
            width,
            layer_norm["weight"],
            layer_norm["bias"],
            LAYER_NORM_EPS,
            weights["conv1_weight"],
            weights["conv1_bias"],
            scale,
            shift,
            weights["conv2_weight"],
            weights["conv2_bias"],
        )
    assert out.dtype == dtype
    assert_near(out, tokens.double() + branch, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", IMAGES)
def test_lpi(shape: tuple[int, int, int, int]) -> None:
    check_lpi(*shape, dtype=torch.float32)


def test_no_images_and_tokens_that_lie_in_another_order() -> None:
    zero, one, weights = torch.zeros(3, device=DEVICE), torch.ones(6, device=DEVICE)[::2], convolutions(3)
    bias = torch.stack([weights["conv1_bias"], zero], dim=1)[:, 0]
    parameters = (one, zero, 1e-6, weights["conv1_weight"], bias, one, zero, weights["conv2_weight"], bias)
    tokens = normal(1, 3, 4).mT
    with torch.no_grad():
        assert lpi(tokens[:0], 2, 2, *parameters).shape == (0, 4, 3)
        copies = [value.contiguous() if isinstance(value, Tensor) else value for value in parameters]
        assert torch.equal(lpi(tokens, 2, 2, *parameters), lpi(tokens.contiguous(), 2, 2, *copies))
        assert normalised_gram(tokens[:0], 1e-6)[1].shape == (0, 3, 3)
        for one_way, other in zip(
            normalised_gram(tokens, 1e-6), normalised_gram(tokens.contiguous(), 1e-6), strict=True
        ):
            assert torch.equal(one_way, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 2, 3), *IMAGES[4:]])
def test_lpi_in_low_precision(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check_lpi(*shape, dtype=dtype)


def train_lpi(
    tokens: Tensor, height: int, width: int, norm: tuple[Tensor, Tensor], weights: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return lpi_training(
        tokens,
        height,
        width,
        weights["conv1_weight"],
        weights["conv1_bias"],
        *norm,
        BATCH_NORM_EPS,
        weights["conv2_weight"],
        weights["conv2_bias"],
    )


def check_training(batch: int, height: int, width: int, dim: int, dtype: torch.dtype) -> None:
    tokens = normal(batch, height * width, dim).to(dtype).requires_grad_()
    norm = (normal(dim).requires_grad_(), normal(dim).requires_grad_())
    weights = {name: value.requires_grad_() for name, value in convolutions(dim).items()}
    out, mean, variance = train_lpi(tokens, height, width, norm, weights)
    assert out.dtype == dtype and not mean.requires_grad and not variance.requires_grad
    grad = normal(*out.shape).to(dtype)
    grads = torch.autograd.grad(out, [tokens, *norm, *weights.values()], grad)

    seen = []

    def batch_norm(hidden: Tensor) -> Tensor:
        seen.append(hidden.detach())
        return F.batch_norm(hidden, None, None, exact_norm[0], exact_norm[1], training=True, eps=BATCH_NORM_EPS)

    exact_tokens = tokens.detach().double().requires_grad_()
    exact_norm = [value.detach().double().requires_grad_() for value in norm]
    exact: dict[str, Any] = {name: value.detach().double().requires_grad_() for name, value in weights.items()}
    module: Any = batch_norm  # a function in place of a module
    expected = reference.lpi(as_image(exact_tokens, height, width), norm=module, **exact).flatten(2).mT
    expected_grads = torch.autograd.grad(expected, [exact_tokens, *exact_norm, *exact.values()], grad.double())

    assert_near(out, expected, max(TOLERANCE[dtype], 2e-5))
    assert_near(mean, seen[0].mean(dim=(0, 2, 3)), 1e-5)
    assert_near(variance, seen[0].var(dim=(0, 2, 3), correction=0), 1e-5)
    assert_near(grads[0], expected_grads[0], max(TOLERANCE[dtype], 1e-4))
    for value, exact_value in zip(grads[1:], expected_grads[1:], strict=True):
        assert value.dtype == torch.float32
        assert_near(value, exact_value, 1e-4)


@pytest.mark.parametrize("shape", IMAGES[1:])
def test_training_and_its_gradients(shape: tuple[int, int, int, int]) -> None:
    check_training(*shape, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[:1] if INTERPRETED else DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 2, 3), *IMAGES[4:]])
def test_training_in_low_precision(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    check_training(*shape, dtype=dtype)


def test_training_with_several_images_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "ENOUGH_PROGRAMS", 1)
    check_training(2, 2, 2, 3, dtype=torch.float32)


def check_gram(batch: int, num_tokens: int, dim: int, dtype: torch.dtype) -> None:
    tokens = (3 * normal(batch, num_tokens, dim) + normal(dim)).to(dtype)
    normed, gram, total = normalised_gram(tokens, LAYER_NORM_EPS)
    assert normed.dtype == dtype and gram.dtype == total.dtype == torch.float32
    assert_near(normed, F.layer_norm(tokens.double(), (dim,), eps=LAYER_NORM_EPS), TOLERANCE[dtype])
    # The kernel computes products and sums from the rounded tokens.
    exact = normed.double()
    assert_near(gram, exact.mT @ exact, 5e-6)
    assert_near(total, exact.sum(dim=1), 5e-6)
    assert torch.equal(gram, gram.mT)


@pytest.mark.parametrize("shape", TOKENS)
def test_gram(shape: tuple[int, int, int]) -> None:
    check_gram(*shape, dtype=torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", TOKENS[1:])
def test_gram_in_low_precision(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check_gram(*shape, dtype=dtype)


@triton.jit
def apply_gelu(x, value, slope, num: tl.constexpr):
    at = tl.arange(0, num)
    gelu, derivative = gelu_and_slope(tl.load(x + at))
    tl.store(value + at, gelu)
    tl.store(slope + at, derivative)


def test_gelu_is_as_exact_as_one_from_erf() -> None:
    x = torch.linspace(-12, 12, 2**14, device=DEVICE)
    value, slope = torch.empty_like(x), torch.empty_like(x)
    apply_gelu[(1,)](x, value, slope, num=len(x))
    exact_x = x.double().requires_grad_()
    exact = F.gelu(exact_x)
    (exact_slope,) = torch.autograd.grad(exact.sum(), exact_x)
    assert (value - exact).abs().max() <= max(5e-7, (F.gelu(x) - exact).abs().max().item())
    assert (slope - exact_slope).abs().max() <= 5e-7


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no place in a compiled graph")
def test_compiled_in_one_graph_with_gradients() -> None:
    batch, height, width, dim = 2, 14, 14, 128
    norm = (normal(dim).requires_grad_(), normal(dim).requires_grad_())
    weights = {name: value.requires_grad_() for name, value in convolutions(dim).items()}
    ones = torch.ones(dim, device=DEVICE)

    def run(tokens: Tensor) -> Tensor:
        out, mean, _ = train_lpi(F.layer_norm(tokens, (dim,)), height, width, norm, weights)
        return tokens + out * 0.5 + mean

    def infer(tokens: Tensor) -> Tensor:
        fixed = {name: value.detach() for name, value in weights.items()}
        first, second = list(fixed.values())[:2], list(fixed.values())[2:]
        out = lpi(tokens * 2, height, width, ones, ones, 1e-6, *first, ones, ones, *second)
        normed, gram, total = normalised_gram(out, 1e-6)
        return normed @ gram.to(normed.dtype) + total[:, None]

    tokens = normal(batch, height * width, dim).requires_grad_()
    inputs = [tokens, *norm, *weights.values()]
    expected, out = run(tokens), torch.compile(run, fullgraph=True)(tokens)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    grad = normal(*out.shape)
    expected_grads, grads = (torch.autograd.grad(value, inputs, grad) for value in (expected, out))
    for value, expected_value in zip(grads, expected_grads, strict=True):
        assert_near(value, expected_value.double(), 1e-5)
    with torch.no_grad():
        assert_near(torch.compile(infer, fullgraph=True)(tokens), infer(tokens).double(), 1e-5)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs one program after another")
def test_every_run_gives_the_same() -> None:
    tokens = normal(8, 784, 192).bfloat16().requires_grad_()
    norm = (normal(192).requires_grad_(), normal(192).requires_grad_())
    weights = {name: value.requires_grad_() for name, value in convolutions(192).items()}
    inputs = [tokens, *norm, *weights.values()]

    def run() -> list[Tensor]:
        out, mean, variance = train_lpi(tokens, 28, 28, norm, weights)
        grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
        return [out, mean, variance, *grads, *normalised_gram(tokens.detach(), LAYER_NORM_EPS)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(INTERPRETED, reason="12 GB of numbers")
def test_an_image_of_more_numbers_than_32_bits_count() -> None:
    side, dim, seen = 2400, 384, 8
    tokens = torch.randn(1, side * side, dim, device=DEVICE, dtype=torch.bfloat16)
    assert tokens.numel() > 2**31
    weights, one, zero = convolutions(dim), torch.ones(dim, device=DEVICE), torch.zeros(dim, device=DEVICE)
    first = (one, zero, LAYER_NORM_EPS, weights["conv1_weight"], weights["conv1_bias"])
    parameters = (*first, one, zero, weights["conv2_weight"], weights["conv2_bias"])
    with torch.no_grad():
        last = tokens[:, -seen * side :]
        expected = lpi(last, seen, side, *parameters)[:, 2 * side :]
        assert_near(lpi(tokens, side, side, *parameters)[:, (2 - seen) * side :], expected.double(), 1e-5)
        normed, gram, total = normalised_gram(tokens, LAYER_NORM_EPS)
        parts = [normalised_gram(part, LAYER_NORM_EPS) for part in tokens.tensor_split(3, dim=1)]
    assert torch.equal(normed[:, -side:], parts[-1][0][:, -side:])
    assert_near(gram, torch.stack([part[1] for part in parts]).double().sum(dim=0), 1e-5)
    assert_near(total, torch.stack([part[2] for part in parts]).double().sum(dim=0), 1e-4)
