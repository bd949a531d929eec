"""Compares the operators with plain loops in float64, written from the equations of the papers."""

import math

import pytest
import torch
from torch import Tensor, nn

from xcit.ops import reference as ops

B, H, W, D, M = 2, 3, 4, 12, 3
N, C = H * W, D // M


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(sum(a * b)) / math.sqrt(float(sum(a * a)) * float(sum(b * b)))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.fixture
def xca_inputs() -> dict[str, Tensor]:
    return {
        "tokens": normal(B, N, D, seed=1),
        "qkv_weight": normal(3 * D, D, seed=2),
        "qkv_bias": normal(3 * D, seed=3),
        "temperature": normal(M, 1, 1, seed=4).abs() + 0.5,
        "proj_weight": normal(D, D, seed=5),
        "proj_bias": normal(D, seed=6),
    }


@pytest.mark.parametrize("with_bias", [True, False])
def test_xca_is_equation_1_of_the_paper_head_by_head(xca_inputs: dict[str, Tensor], with_bias: bool) -> None:
    if not with_bias:
        xca_inputs["qkv_bias"] = None
    expected = torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        qkv = xca_inputs["tokens"][b] @ xca_inputs["qkv_weight"].T
        if with_bias:
            qkv = qkv + xca_inputs["qkv_bias"]
        queries, keys, values = qkv[:, :D], qkv[:, D : 2 * D], qkv[:, 2 * D :]
        for channel in range(D):
            head = channel // C
            others = range(head * C, (head + 1) * C)
            temperature = float(xca_inputs["temperature"][head])
            weights = softmax([temperature * cosine(queries[:, channel], keys[:, other]) for other in others])
            for weight, other in zip(weights, others, strict=True):
                expected[b, :, channel] += weight * values[:, other]
    expected = expected @ xca_inputs["proj_weight"].T + xca_inputs["proj_bias"]

    torch.testing.assert_close(ops.xca(**xca_inputs), expected, rtol=1e-12, atol=1e-12)


def test_xca_sees_tokens_as_a_set(xca_inputs: dict[str, Tensor]) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = ops.xca(**(xca_inputs | {"tokens": xca_inputs["tokens"][:, order]}))
    torch.testing.assert_close(shuffled, ops.xca(**xca_inputs)[:, order])


def test_xca_does_not_depend_on_the_length_of_queries_and_keys(xca_inputs: dict[str, Tensor]) -> None:
    scale = torch.ones(3 * D, dtype=torch.float64)
    scale[: 2 * D] = 7.0
    longer = {"qkv_weight": xca_inputs["qkv_weight"] * scale[:, None], "qkv_bias": xca_inputs["qkv_bias"] * scale}
    torch.testing.assert_close(ops.xca(**(xca_inputs | longer)), ops.xca(**xca_inputs))


def test_xca_of_zeros_is_finite(xca_inputs: dict[str, Tensor]) -> None:
    zeros = {name: torch.zeros_like(xca_inputs[name]) for name in ("tokens", "qkv_bias")}
    torch.testing.assert_close(ops.xca(**(xca_inputs | zeros)), xca_inputs["proj_bias"].expand(B, N, D))


def test_xca_gradients(xca_inputs: dict[str, Tensor]) -> None:
    inputs = tuple(value.requires_grad_() for value in xca_inputs.values())
    assert torch.autograd.gradcheck(ops.xca, inputs, fast_mode=True)


def test_class_attention_is_softmax_attention_of_one_query() -> None:
    query, key, value = normal(B, D, seed=1), normal(B, N, D, seed=2), normal(B, N, D, seed=3)
    expected = torch.zeros(B, D, dtype=torch.float64)
    expected_attention = torch.zeros(B, M, N, dtype=torch.float64)
    for b in range(B):
        for head in range(M):
            channels = slice(head * C, (head + 1) * C)
            scores = [float(sum(query[b, channels] * key[b, n, channels])) / math.sqrt(C) for n in range(N)]
            expected_attention[b, head] = torch.tensor(softmax(scores))
            for n in range(N):
                expected[b, channels] += expected_attention[b, head, n] * value[b, n, channels]

    out, attention = ops.class_attention(query, key, value, M)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(attention, expected_attention)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(B, M, dtype=torch.float64))


def depthwise(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = torch.zeros_like(image)
    for d in range(D):
        for y in range(H):
            for x in range(W):
                out[:, d, y, x] = bias[d]
                for i in range(3):
                    for j in range(3):
                        if 0 <= y + i - 1 < H and 0 <= x + j - 1 < W:
                            out[:, d, y, x] += weight[d, 0, i, j] * image[:, d, y + i - 1, x + j - 1]
    return out


@pytest.mark.parametrize("training", [False, True])
def test_lpi_is_two_depthwise_convolutions_with_gelu_then_norm_between(training: bool) -> None:
    image = normal(B, D, H, W, seed=1)
    weight1, weight2 = normal(D, 1, 3, 3, seed=2), normal(D, 1, 3, 3, seed=3)
    bias1, bias2 = normal(D, seed=4), normal(D, seed=5)
    norm = nn.BatchNorm2d(D, dtype=torch.float64).train(training)
    with torch.no_grad():
        norm.weight.copy_(normal(D, seed=6))
        norm.bias.copy_(normal(D, seed=7))
        norm.running_mean.copy_(normal(D, seed=8))
        norm.running_var.copy_(normal(D, seed=9).abs() + 0.5)

    hidden = gelu(depthwise(image, weight1, bias1))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    if training:
        mean, var = hidden.mean(dim=(0, 2, 3)), hidden.var(dim=(0, 2, 3), correction=0)
    hidden = (hidden - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    hidden = hidden * norm.weight[:, None, None] + norm.bias[:, None, None]
    expected = depthwise(hidden, weight2, bias2)

    torch.testing.assert_close(ops.lpi(image, weight1, bias1, norm, weight2, bias2), expected)


@pytest.mark.parametrize("length", [1, 5, 14])
def test_fourier_position_interleaves_sines_and_cosines(length: int) -> None:
    code = ops.fourier_position(length)
    assert code.shape == (length, ops.POSITION_DIM)
    assert code.dtype == torch.float32
    for i in range(length):
        angle = (i + 1) / (length + 1e-6) * 2 * math.pi
        for j in range(ops.POSITION_DIM // 2):
            frequency = 10000 ** (2 * j / ops.POSITION_DIM)
            assert code[i, 2 * j] == pytest.approx(math.sin(angle / frequency), abs=2e-6)
            assert code[i, 2 * j + 1] == pytest.approx(math.cos(angle / frequency), abs=2e-6)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0() -> None:
    branch = normal(4, 3, 2)
    assert ops.drop_path(branch, 0.5, training=False) is branch
    assert ops.drop_path(branch, 0.0, training=True) is branch


@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_drop_path_drops_whole_samples_and_keeps_the_expectation(rate: float) -> None:
    num_samples = 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = ops.drop_path(torch.ones(num_samples, 3, 2), rate, training=True)
    first = out[:, :1, :1]
    assert torch.equal(out, first.expand_as(out))
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    sigma = math.sqrt(rate * (1 - rate) / num_samples)
    assert (first == 0).double().mean() == pytest.approx(rate, abs=4 * sigma)
    assert first.mean() == pytest.approx(1, abs=4 * sigma / (1 - rate))
