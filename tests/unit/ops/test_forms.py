"""Compares every fast form of an operator with the reference: forward and backward, in every dtype, at odd sizes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xcit.ops import forms, reference

D, M = 24, 3
LOW = (torch.bfloat16, torch.float16)

Inputs = dict[str, Tensor | None]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def xca_inputs(num_tokens: int, *, batch: int = 2, dim: int = D, with_bias: bool = True) -> Inputs:
    tokens = F.layer_norm(normal(batch, num_tokens, dim, seed=1) + 2 * normal(dim, seed=2), (dim,))
    return {
        "tokens": tokens,
        "qkv_weight": normal(3 * dim, dim, seed=3) * dim**-0.5,
        "qkv_bias": normal(3 * dim, seed=4) if with_bias else None,
        "temperature": normal(M, 1, 1, seed=5).abs() + 0.5,
        "proj_weight": normal(dim, dim, seed=6) * dim**-0.5,
        "proj_bias": normal(dim, seed=7),
    }


def class_inputs(num_tokens: int, with_bias: bool = True) -> Inputs:
    return {
        "query": normal(2, D, seed=1),
        "tokens": normal(2, num_tokens, D, seed=2),
        "key_weight": normal(D, D, seed=3) * D**-0.5,
        "key_bias": normal(D, seed=4) if with_bias else None,
        "value_weight": normal(D, D, seed=5) * D**-0.5,
        "value_bias": normal(D, seed=6) if with_bias else None,
    }


def reference_class_attention(
    query: Tensor,
    tokens: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
) -> Tensor:
    key, value = F.linear(tokens, key_weight, key_bias), F.linear(tokens, value_weight, value_bias)
    return reference.class_attention(query, key, value, M)[0]


def fast_class_attention(**inputs: Tensor) -> Tensor:
    return forms.class_attention(**inputs, num_heads=M)


def to(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: None if value is None else value.to(dtype) for name, value in inputs.items()}


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).abs().max() / exact.abs().max())


def outputs_and_gradients(function: Callable[..., Tensor], inputs: Inputs) -> dict[str, Tensor]:
    inputs = {name: None if value is None else value.clone().requires_grad_() for name, value in inputs.items()}
    output = function(**inputs)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return {"output": output.detach()} | {name: value.grad for name, value in inputs.items() if value is not None}


FORMS = {
    "gram, matrix": (0.0, 0.0),
    "gram, values": (0.0, float("inf")),
    "tokens, matrix": (float("inf"), 0.0),
    "tokens, values": (float("inf"), float("inf")),
}


@pytest.fixture(params=FORMS.values(), ids=[*FORMS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    gram_from, matrix_from = request.param
    monkeypatch.setattr(forms, "GRAM_FROM", gram_from)
    monkeypatch.setattr(forms, "MATRIX_FROM", matrix_from)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("num_tokens", [1, 7, 24, 53])
@pytest.mark.parametrize("with_bias", [True, False])
def test_xca_and_its_gradients_are_the_references(num_tokens: int, with_bias: bool) -> None:
    inputs = xca_inputs(num_tokens, with_bias=with_bias)
    expected = outputs_and_gradients(reference.xca, inputs)
    for name, value in outputs_and_gradients(forms.xca, inputs).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.usefixtures("form")
def test_xca_is_as_exact_in_float32_as_the_reference() -> None:
    inputs = xca_inputs(500, dim=48)
    exact = outputs_and_gradients(reference.xca, inputs)
    theirs = outputs_and_gradients(reference.xca, to(inputs, torch.float32))
    for name, value in outputs_and_gradients(forms.xca, to(inputs, torch.float32)).items():
        assert error(value, exact[name]) <= 10 * error(theirs[name], exact[name]) + 1e-6, name


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_xca_is_as_exact_in_low_precision_as_the_reference(dtype: torch.dtype) -> None:
    inputs = to(xca_inputs(300), dtype)
    exact = outputs_and_gradients(reference.xca, to(inputs, torch.float64))
    theirs = outputs_and_gradients(reference.xca, inputs)
    for name, value in outputs_and_gradients(forms.xca, inputs).items():
        assert value.dtype == dtype
        assert error(value, exact[name]) <= 2 * error(theirs[name], exact[name]) + torch.finfo(dtype).eps, name


@pytest.mark.usefixtures("form")
def test_sums_over_many_tokens_do_not_overflow_in_float16() -> None:
    inputs = xca_inputs(3000, batch=1)
    low = to(inputs | {"qkv_weight": inputs["qkv_weight"] * 6}, torch.float16)
    exact = reference.xca(**to(low, torch.float64))
    assert error(forms.xca(**low), exact) < 5e-3


@pytest.mark.usefixtures("form")
def test_under_autocast_the_output_is_low_precision_and_as_exact_as_the_references() -> None:
    inputs = to(xca_inputs(300), torch.float32)
    exact = reference.xca(**to(inputs, torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, theirs = forms.xca(**inputs), reference.xca(**inputs)
    assert output.dtype == torch.bfloat16
    assert error(output, exact) <= 2 * error(theirs, exact) + torch.finfo(torch.bfloat16).eps


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_a_large_common_part_of_queries_and_keys_costs_no_accuracy(shift: float) -> None:
    inputs = xca_inputs(400, dim=48)
    inputs["qkv_bias"] = inputs["qkv_bias"] + shift
    exact, single = reference.xca(**inputs), to(inputs, torch.float32)
    assert error(forms.xca(**single), exact) <= 10 * error(reference.xca(**single), exact) + 1e-6


@pytest.mark.usefixtures("form")
def test_queries_and_keys_of_zero_length_are_finite_with_finite_gradients() -> None:
    inputs = to(xca_inputs(60), torch.float32)
    inputs |= {name: torch.zeros_like(inputs[name]) for name in ("tokens", "qkv_bias")}
    expected = reference.xca(**inputs)
    for name, value in outputs_and_gradients(forms.xca, inputs).items():
        assert value.isfinite().all(), name
    torch.testing.assert_close(forms.xca(**inputs), expected)


def test_the_gram_matrix_adds_up_over_parts_and_is_float32_at_least() -> None:
    tokens = normal(2, 50, D, seed=1).bfloat16()
    parts = [forms.gram(part) for part in tokens.split(17, dim=1)]
    whole = tokens.double().mT @ tokens.double()
    assert parts[0][0].dtype == parts[0][1].dtype == torch.float32
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(0).double(), whole, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        torch.stack([part[1] for part in parts]).sum(0).double(), tokens.double().sum(1, keepdim=True)
    )


@pytest.mark.parametrize("num_tokens", [1, 6, 51])
@pytest.mark.parametrize("with_bias", [True, False])
def test_class_attention_and_its_gradients_are_the_references(num_tokens: int, with_bias: bool) -> None:
    inputs = class_inputs(num_tokens, with_bias)
    expected = outputs_and_gradients(reference_class_attention, inputs)
    for name, value in outputs_and_gradients(fast_class_attention, inputs).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_class_attention_is_as_exact_in_low_precision_as_the_reference(dtype: torch.dtype) -> None:
    inputs = to(class_inputs(60), dtype)
    exact = outputs_and_gradients(reference_class_attention, to(inputs, torch.float64))
    theirs = outputs_and_gradients(reference_class_attention, inputs)
    for name, value in outputs_and_gradients(fast_class_attention, inputs).items():
        if name != "key_bias":  # its true gradient is 0, so the values are only noise
            assert error(value, exact[name]) <= 2 * error(theirs[name], exact[name]) + torch.finfo(dtype).eps, name


# Derivatives of derivatives


@pytest.mark.usefixtures("form")
def test_second_derivatives_of_xca() -> None:
    inputs = [value.requires_grad_() for value in xca_inputs(5, batch=1, dim=6).values() if value is not None]
    assert torch.autograd.gradcheck(forms.xca, inputs)
    assert torch.autograd.gradgradcheck(forms.xca, inputs)


def test_second_derivatives_of_class_attention() -> None:
    inputs = [value.requires_grad_() for value in class_inputs(3).values() if value is not None]
    function = lambda *values: forms.class_attention(*values, num_heads=M)  # type: ignore[misc]  # noqa: E731
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # torch's own warnings about its decompositions
def test_the_gram_matrix_has_all_derivatives() -> None:
    tokens = normal(2, 7, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: forms.gram(x)[0], tokens, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: forms.gram(x)[0], tokens, check_fwd_over_rev=True)


@pytest.mark.usefixtures("form")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # torch's own warnings about its decompositions
def test_hessian_vector_products_and_forward_mode_are_those_of_the_reference() -> None:
    inputs = xca_inputs(9)
    tokens, direction = inputs.pop("tokens"), normal(2, 9, D, seed=8)
    assert tokens is not None

    def of(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x, **inputs).square().sum()

    for function in (
        lambda scalar: torch.func.jvp(torch.func.grad(scalar), (tokens,), (direction,))[1],
        lambda scalar: torch.autograd.functional.hvp(scalar, tokens, direction)[1],
        lambda scalar: torch.func.jvp(scalar, (tokens,), (direction,))[1],
        lambda scalar: torch.func.vmap(torch.func.grad(lambda x: scalar(x[None])))(tokens),
    ):
        fast, exact = function(of(forms.xca)), function(of(reference.xca))
        assert error(fast, exact) < 1e-9
