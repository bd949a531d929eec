"""Faster forms of XCA (cross-covariance attention) and class attention, and the rule that chooses a form.

The results equal those of `ops.reference` up to rounding.

XCA mixes only channels. So its output is the product of the tokens X (N x D) and one D x D matrix P per image, plus one
row p, which is added to each token:

    y = X P + p,    P = (W_proj A W_v)^T,    p = W_proj A b_v + b_proj.

W and b are the weights and biases of the queries, keys, values and the projection. A is the block-diagonal matrix with
the attention of each head as a block. To compute A, only the products q^T k of queries and keys are needed. These
products are sums over all tokens. They can be computed from m, the mean of X over the tokens, and from
S = X^T X - N m m^T:

    q^T k = W_q S W_k^T + N q_m k_m^T,    q_m = W_q m + b_q,    k_m = W_k m + b_k.

The same equation holds for q^T q and k^T k. Their diagonals are the squared norms |q|^2 and |k|^2. Each squared norm is
the sum of two terms that are never negative, so the sum loses no precision by cancellation.

So XCA has two steps, the attention A and the output y. Each step can be computed either with queries, keys and values
(N x D each) or without them. Without them, the attention is computed from the Gram matrix X^T X, and the output by the
matrix P. The numbers of multiply-accumulates are:

    step        with queries, keys and values   without queries, keys and values
    attention   2 N D^2 + N D C                 N D^2 + (2 + C/D) D^3
    output      2 N D^2 + N D C                 N D^2 + (1 + C/D) D^3

For the backward pass, the forms with queries, keys and values store 5 N D numbers. The forms without them store X and
some D x D matrices.

In class attention, the class token is the only query. The product of this query with the key weights is one vector per
head, so keys and values need not be computed. This takes 2 M N D multiply-accumulates instead of 2 N D^2.

Shapes: `B` batch, `N` tokens, `D` width, `M` heads, `C = D/M` channels per head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.ops import reference
from xcit.ops.products import affine, gram_matrix, linear

EPSILON = 1e-12
"""The smallest norm by which a query or key is divided, as in `ops.reference`."""

GRAM_FROM = 2.0
"""Smallest ratio N / D for which the attention is computed from the Gram matrix on a CPU."""

MATRIX_FROM = 1.0
"""Smallest ratio N / D for which the output is computed by the matrix P on a CPU."""


def xca(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Computes XCA, with the arguments and result of `reference.xca`. On a CPU, uses the fastest form for N and D."""
    num_tokens, dim = tokens.shape[1:]
    # An exported or traced graph must work for every N, so its form can't depend on N. On GPUs, the forms have not been
    # measured yet.
    is_fixed = torch.compiler.is_exporting() or torch.jit._trace.is_tracing()
    if is_fixed or tokens.device.type != "cpu":
        return reference.xca(tokens, qkv_weight, qkv_bias, temperature, proj_weight, proj_bias)
    if num_tokens >= GRAM_FROM * dim:
        attention = attention_from_gram(*gram(tokens), num_tokens, qkv_weight, qkv_bias, temperature)
    else:
        attention = attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature)
    if num_tokens >= MATRIX_FROM * dim:
        matrix, row = mixing_matrix(attention, qkv_weight, qkv_bias, proj_weight, proj_bias)
        return affine(tokens, matrix.to(tokens.dtype), row.to(tokens.dtype))
    return mix_values(tokens, attention, qkv_weight, qkv_bias, proj_weight, proj_bias)


def xca_in_graph(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    *,
    by: Literal["size", "sums", "tokens"],
) -> Tensor:
    """Computes XCA in a graph that is exported for another runtime. The result is that of `reference.xca`.

    Args:
        tokens: (B, N, D).
        qkv_weight: as in `reference.xca`.
        qkv_bias: as in `reference.xca`.
        temperature: as in `reference.xca`.
        proj_weight: as in `reference.xca`.
        proj_bias: as in `reference.xca`.
        by: the form of the computation if N is not fixed in the graph. "sums" is the form without queries, keys and
            values, which is the fastest for many tokens. "tokens" is the form with queries, keys and values, which is
            the fastest for few tokens. "size" puts both forms into the graph, and the graph chooses between them when
            it runs. If N is fixed, `by` is ignored, and the graph contains the fastest form for N.
    """
    weights = (qkv_weight, qkv_bias, temperature, proj_weight, proj_bias)
    is_many = tokens.shape[1] >= max(GRAM_FROM, MATRIX_FROM) * tokens.shape[2]
    if isinstance(is_many, torch.SymBool) and by == "size":
        return torch.cond(
            is_many,
            lambda tokens: _xca_by_sums(tokens, *weights),
            lambda tokens: _xca_by_tokens(tokens, *weights),
            (tokens,),
        )
    by_sums = by == "sums" if isinstance(is_many, torch.SymBool) else is_many
    return _xca_by_sums(tokens, *weights) if by_sums else _xca_by_tokens(tokens, *weights)


def _xca_by_sums(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Computes XCA without computing queries, keys and values.

    The attention is computed from the Gram matrix. The output is the product of the tokens and the matrix P, plus the
    row p (see `mixing_matrix`).
    """
    attention = attention_from_gram(*gram(tokens), tokens.shape[1], qkv_weight, qkv_bias, temperature)
    matrix, row = mixing_matrix(attention, qkv_weight, qkv_bias, proj_weight, proj_bias)
    return tokens @ matrix.to(tokens.dtype) + row.to(tokens.dtype)


def _xca_by_tokens(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Computes XCA with queries, keys and values.

    The products of queries and keys are normalised, not the queries and keys themselves, because the products have
    fewer elements.
    """
    attention = attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature)
    return mix_values(tokens, attention, qkv_weight, qkv_bias, proj_weight, proj_bias)


def gram(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the Gram matrix X^T X (B, D, D) of tokens (B, N, D), and their sum (B, 1, D), in float32 or float64.

    The sum of the results for parts of the tokens is the result for all tokens.
    """
    with _without_autocast(tokens):
        tokens = _wide(tokens)
        return _gram(tokens), tokens.sum(dim=1, keepdim=True)


class _Gram(torch.autograd.Function):
    """Computes X^T X. The gradient takes one matrix product with the tokens; without this class, it would take two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor) -> Tensor:
        return tokens.mT @ tokens

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (tokens,) = ctx.saved_tensors
        return tokens @ (gradient + gradient.mT)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (tokens,) = ctx.saved_tensors
        product = tangent.mT @ tokens
        return product + product.mT


def _gram(tokens: Tensor) -> Tensor:
    # Compilers and tracers do not support `torch.autograd.Function`, and without gradients it has no benefit.
    if (
        torch.compiler.is_compiling()
        or torch.jit._trace.is_tracing()
        or not (torch.is_grad_enabled() and tokens.requires_grad)
    ):
        return gram_matrix(tokens)
    return _Gram.apply(tokens)


def attention_from_gram(
    gram: Tensor, total: Tensor, num_tokens: int, qkv_weight: Tensor, qkv_bias: Tensor | None, temperature: Tensor
) -> Tensor:
    """Returns the attention (B, M, C, C) of each head, computed from the outputs of `gram`, in float32 or float64."""
    batch, dim, _ = gram.shape
    num_heads = temperature.shape[0]
    with _without_autocast(gram):
        weight = _wide(qkv_weight[: 2 * dim])
        mean = total / num_tokens
        covariance = torch.baddbmm(gram, total.mT, mean, alpha=-1)
        moved = linear(covariance.reshape(batch * dim, dim), weight).view(batch, dim, 2 * dim)  # S W^T
        means = F.linear(mean, weight, None if qkv_bias is None else _wide(qkv_bias[: 2 * dim])).squeeze(1)  # q_m, k_m
        squares = (moved * weight.t()).sum(dim=1) + num_tokens * means.square()
        query_weight = weight[:dim].view(num_heads, -1, dim)
        moved_keys = moved[:, :, dim:].unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, M, D, C)
        # These two views of `means` are not computed by `unbind`. With `unbind`, Inductor would store the views in
        # addition to `means` for the backward pass. If the views are contiguous, as for a batch of one, Inductor would
        # overwrite them while it still reads `means`.
        query_mean = means[:, :dim].view(batch, num_heads, -1, 1)
        key_mean = means[:, dim:].view(batch, num_heads, 1, -1)
        products = query_weight @ moved_keys + num_tokens * query_mean * key_mean
        return _attention(products, squares, temperature)


def attention_from_tokens(tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor | None, temperature: Tensor) -> Tensor:
    """Returns the attention (B, M, C, C) of each head, computed from queries and keys, in float32 or float64."""
    dim = tokens.shape[2]
    bias = None if qkv_bias is None else qkv_bias[: 2 * dim]
    return _attention_of(linear(tokens, qkv_weight[: 2 * dim], bias), temperature)


def xca_of_qkv(qkv: Tensor, temperature: Tensor) -> Tensor:
    """Returns XCA's output before the projection (B, N, D), from queries, keys and values (B, N, 3D).

    This function is for models with linear layers that must be called as modules, for example because of hooks. The
    functions above read the weights of the layers instead.
    """
    dim = qkv.shape[2] // 3
    return _mix(qkv[:, :, 2 * dim :], _attention_of(qkv[:, :, : 2 * dim], temperature))


def _attention_of(queries_keys: Tensor, temperature: Tensor) -> Tensor:
    """Returns the attention (B, M, C, C) of queries and keys (B, N, 2D), in float32 or float64."""
    batch, num_tokens, _ = queries_keys.shape
    with _without_autocast(queries_keys):
        queries_keys = _wide(queries_keys)
        query, key = queries_keys.reshape(batch, num_tokens, 2, temperature.shape[0], -1).unbind(2)
        products = query.permute(0, 2, 3, 1) @ key.transpose(1, 2)
        return _attention(products, queries_keys.square().sum(dim=1), temperature)


def _attention(products: Tensor, squares: Tensor, temperature: Tensor) -> Tensor:
    """Computes the attention from the products (B, M, C, C) and the squared norms (B, 2D) of queries and keys.

    The products are divided by the norms and multiplied by the temperature. Then the softmax is applied.
    """
    batch, num_heads, head_dim, _ = products.shape
    scale = squares.clamp(min=EPSILON**2).rsqrt().view(batch, 2, num_heads, head_dim)
    return (products * (scale[:, 0, :, :, None] * _wide(temperature)) * scale[:, 1, :, None, :]).softmax(dim=-1)


def mixing_matrix(
    attention: Tensor, qkv_weight: Tensor, qkv_bias: Tensor | None, proj_weight: Tensor, proj_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the matrix P (B, D, D) and the row p (B, 1, D), for which XCA's output is X P + p.

    Both have the dtype of the attention (B, M, C, C). The docstring of this module explains P and p.
    """
    batch, num_heads = attention.shape[:2]
    dim = proj_weight.shape[0]
    with _without_autocast(attention):
        proj_weight, proj_bias = _wide(proj_weight), _wide(proj_bias)
        attended = attention @ _wide(qkv_weight[2 * dim :]).view(num_heads, -1, dim)
        matrix = linear(attended.view(batch, dim, dim).mT, proj_weight)
        if qkv_bias is None:
            return matrix, proj_bias.expand(batch, 1, dim)
        value_bias = attention @ _wide(qkv_bias[2 * dim :]).view(num_heads, -1, 1)
        return matrix, F.linear(value_bias.view(batch, 1, dim), proj_weight, proj_bias)


def mix_values(
    tokens: Tensor,
    attention: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Computes values (B, N, D), then applies the attention (B, M, C, C) and the projection. Returns (B, N, D)."""
    dim = tokens.shape[2]
    values = linear(tokens, qkv_weight[2 * dim :], None if qkv_bias is None else qkv_bias[2 * dim :])
    return linear(_mix(values, attention), proj_weight, proj_bias)


def _mix(values: Tensor, attention: Tensor) -> Tensor:
    """Applies the attention (B, M, C, C) of each head to values (B, N, D)."""
    heads = values.unflatten(2, (attention.shape[1], -1)).transpose(1, 2)
    return (heads @ attention.to(values.dtype).mT).transpose(1, 2).flatten(2)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Returns a context manager that disables autocast, so that products are computed in the dtype of their factors.

    For devices without autocast, the context manager does nothing.
    """
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _wide(tensor: Tensor) -> Tensor:
    """Converts a tensor of 16-bit numbers to float32, and returns other tensors unchanged.

    In float16, sums over N tokens may overflow. bfloat16 has only 8 bits of precision.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def class_attention(
    query: Tensor,
    tokens: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None,
    value_weight: Tensor,
    value_bias: Tensor | None,
    num_heads: int,
) -> Tensor:
    """Computes class attention over tokens (B, N, D), for the query of the class token (B, D). The result is (B, D).

    Keys and values are not computed. Instead, the key weights are applied to the query, and the value weights are
    applied to the weighted mean of the tokens.
    """
    vectors, offsets = class_query(query, key_weight, key_bias, num_heads)
    weights = (vectors @ tokens.mT + offsets).softmax(dim=-1)
    return class_value(weights @ tokens, value_weight, value_bias)


def class_query(
    query: Tensor, key_weight: Tensor, key_bias: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor | float]:
    """Returns one vector per head (B, M, D) and one offset per head (B, M, 1).

    If there is no key bias, the offset is the number 0.0.

    The attention score of a token before the softmax is the dot product of the vector and the token, plus the offset.
    """
    batch, dim = query.shape
    query = query.view(batch, num_heads, 1, -1) * (dim // num_heads) ** -0.5
    vectors = (query @ key_weight.view(num_heads, -1, dim)).squeeze(2)
    # An offset that is the same for all scores of a head does not change the softmax. It is added only so that the key
    # bias gets a gradient, which is 0.
    offsets = 0.0 if key_bias is None else (query @ key_bias.view(num_heads, -1, 1)).squeeze(3)
    return vectors, offsets


def class_value(mixed: Tensor, value_weight: Tensor, value_bias: Tensor | None) -> Tensor:
    """Returns the output of class attention (B, D), before its projection.

    Args:
        mixed: (B, M, D), for each head the mean of the tokens, weighted by the attention of the head.
        value_weight: (D, D).
        value_bias: (D,) or None.
    """
    batch, num_heads, dim = mixed.shape
    values = value_weight.view(num_heads, -1, dim) @ mixed[..., None]
    return values.reshape(batch, dim) if value_bias is None else values.reshape(batch, dim) + value_bias
