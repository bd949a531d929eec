"""Faster forms of XCA and class attention: the numbers of `ops.reference` to rounding, and the rule that chooses.

XCA mixes channels alone, so its output is the tokens X (N x D) times one D x D matrix an image, plus one row:

    y = X P + p,    P = (W_proj A W_v)^T,    p = W_proj A b_v + b_proj,

where A, block-diagonal, holds each head's attention. A needs queries and keys only through products over the tokens,
which the covariance of the tokens holds: with m = mean of X over the tokens and S = X^T X - N m m^T,

    q^T k = W_q S W_k^T + N q_m k_m^T,    q_m = W_q m + b_q,    k_m = W_k m + b_k,

and |q|^2, |k|^2 are the diagonals of the same expression for (q, q) and (k, k), sums of positive terms. So each half of
XCA, the attention and its use, can be had with N x D queries, keys and values or without them:

    attention: from the tokens 2 N D^2 + N D C, from the Gram matrix X^T X  N D^2 + (2 + C/D) D^3
    output:    by the values   2 N D^2 + C D^2, by the matrix P             N D^2 + (1 + C/D) D^3

multiply-accumulates. What training keeps for the backward pass is X and D x D matrices on the right, 5 N D on the left.

The class token is the only query of class attention, so its product with the key weights is one vector a head, and keys
and values are never formed: 2 M N D multiply-accumulates instead of 2 N D^2.

Shapes: `B` batch, `N` tokens, `D` width, `M` heads, `C = D/M` channels a head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.ops import reference

EPSILON = 1e-12
"""Least norm that a query or key is divided by, as in the reference."""

GRAM_FROM = 2.0
"""N / D from which a CPU makes the attention from the Gram matrix."""

MATRIX_FROM = 1.0
"""N / D from which a CPU makes the output by the matrix P."""


def xca(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """`reference.xca` in the form that is fastest for N and D; arguments and result are the same."""
    num_tokens, dim = tokens.shape[1:]
    # An exported or traced graph serves every N. On a GPU nothing has been measured yet.
    is_fixed = torch.compiler.is_exporting() or torch.jit._trace.is_tracing()
    if is_fixed or tokens.device.type != "cpu":
        return reference.xca(tokens, qkv_weight, qkv_bias, temperature, proj_weight, proj_bias)
    if num_tokens >= GRAM_FROM * dim:
        attention = attention_from_gram(*gram(tokens), num_tokens, qkv_weight, qkv_bias, temperature)
    else:
        attention = attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature)
    if num_tokens >= MATRIX_FROM * dim:
        matrix, row = mixing_matrix(attention, qkv_weight, qkv_bias, proj_weight, proj_bias)
        return torch.baddbmm(row.to(tokens.dtype), tokens, matrix.to(tokens.dtype))
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
    """`xca` for a graph that other runtimes run; arguments and result are the same.

    Args:
        tokens: (B, N, D).
        qkv_weight: as in `reference.xca`.
        qkv_bias: likewise.
        temperature: likewise.
        proj_weight: likewise.
        proj_bias: likewise.
        by: the form of a graph whose N is not known: "sums" is right for every N and fastest for many, "tokens" for
            few, "size" has both and chooses when it runs. Where N is known, the form is chosen now.
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
    """XCA without queries, keys and values: attention from the Gram matrix, output by the matrix P."""
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
    """XCA by queries, keys and values, of which only the products of the first two are normalised."""
    attention = attention_from_tokens(tokens, qkv_weight, qkv_bias, temperature)
    return mix_values(tokens, attention, qkv_weight, qkv_bias, proj_weight, proj_bias)


def gram(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix X^T X (B, D, D) of tokens (B, N, D) and their sum (B, 1, D), in float32 at least.

    Both add up over parts of the tokens.
    """
    with _without_autocast(tokens):
        tokens = _wide(tokens)
        return _gram(tokens), tokens.sum(dim=1, keepdim=True)


class _Gram(torch.autograd.Function):
    """X^T X, whose gradient needs one product with the tokens, where autograd by itself makes two."""

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
    # A compiler or tracer takes no function with derivatives of its own; without a backward pass there is none to gain.
    if (
        torch.compiler.is_compiling()
        or torch.jit._trace.is_tracing()
        or not (torch.is_grad_enabled() and tokens.requires_grad)
    ):
        return tokens.mT @ tokens
    return _Gram.apply(tokens)


def attention_from_gram(
    gram: Tensor, total: Tensor, num_tokens: int, qkv_weight: Tensor, qkv_bias: Tensor | None, temperature: Tensor
) -> Tensor:
    """Attention (B, M, C, C) of each head from what `gram` gives for all tokens, in float32 at least."""
    batch, dim, _ = gram.shape
    num_heads = temperature.shape[0]
    with _without_autocast(gram):
        weight = _wide(qkv_weight[: 2 * dim])
        mean = total / num_tokens
        covariance = torch.baddbmm(gram, total.mT, mean, alpha=-1)
        moved = (covariance.reshape(batch * dim, dim) @ weight.t()).view(batch, dim, 2 * dim)  # S W^T
        means = F.linear(mean, weight, None if qkv_bias is None else _wide(qkv_bias[: 2 * dim])).squeeze(1)  # q_m, k_m
        squares = (moved * weight.t()).sum(dim=1) + num_tokens * means.square()
        query_weight = weight[:dim].view(num_heads, -1, dim)
        moved_keys = moved[:, :, dim:].unflatten(2, (num_heads, -1)).transpose(1, 2)  # (B, M, D, C)
        # Not by `unbind`: Inductor would keep these views beside `means` for the backward pass and, where they are
        # contiguous, which is for a batch of one, overwrite them while it still reads `means`.
        query_mean = means[:, :dim].view(batch, num_heads, -1, 1)
        key_mean = means[:, dim:].view(batch, num_heads, 1, -1)
        products = query_weight @ moved_keys + num_tokens * query_mean * key_mean
        return _attention(products, squares, temperature)


def attention_from_tokens(tokens: Tensor, qkv_weight: Tensor, qkv_bias: Tensor | None, temperature: Tensor) -> Tensor:
    """Attention (B, M, C, C) of each head from queries and keys as they lie, in float32 at least."""
    dim = tokens.shape[2]
    bias = None if qkv_bias is None else qkv_bias[: 2 * dim]
    return _attention_of(F.linear(tokens, qkv_weight[: 2 * dim], bias), temperature)


def xca_of_qkv(qkv: Tensor, temperature: Tensor) -> Tensor:
    """XCA's mixed values (B, N, D), before the projection, of queries, keys and values (B, N, 3D) as a layer gave them.

    For layers that have to be called: the forms above read their weights.
    """
    dim = qkv.shape[2] // 3
    return _mix(qkv[:, :, 2 * dim :], _attention_of(qkv[:, :, : 2 * dim], temperature))


def _attention_of(queries_keys: Tensor, temperature: Tensor) -> Tensor:
    """Attention (B, M, C, C) of queries and keys (B, N, 2D), in float32 at least."""
    batch, num_tokens, _ = queries_keys.shape
    with _without_autocast(queries_keys):
        queries_keys = _wide(queries_keys)
        query, key = queries_keys.reshape(batch, num_tokens, 2, temperature.shape[0], -1).unbind(2)
        products = query.permute(0, 2, 3, 1) @ key.transpose(1, 2)
        return _attention(products, queries_keys.square().sum(dim=1), temperature)


def _attention(products: Tensor, squares: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of products (B, M, C, C) over the norms, given the squared norms (B, 2D) of queries and keys."""
    batch, num_heads, head_dim, _ = products.shape
    scale = squares.clamp(min=EPSILON**2).rsqrt().view(batch, 2, num_heads, head_dim)
    return (products * (scale[:, 0, :, :, None] * _wide(temperature)) * scale[:, 1, :, None, :]).softmax(dim=-1)


def mixing_matrix(
    attention: Tensor, qkv_weight: Tensor, qkv_bias: Tensor | None, proj_weight: Tensor, proj_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """P (B, D, D) and p (B, 1, D), so that X P + p is the output, from the attention (B, M, C, C), in its precision."""
    batch, num_heads = attention.shape[:2]
    dim = proj_weight.shape[0]
    with _without_autocast(attention):
        proj_weight, proj_bias = _wide(proj_weight), _wide(proj_bias)
        attended = attention @ _wide(qkv_weight[2 * dim :]).view(num_heads, -1, dim)
        matrix = attended.view(batch, dim, dim).mT @ proj_weight.t()
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
    """The output (B, N, D) from values (B, N, D) and the attention (B, M, C, C)."""
    dim = tokens.shape[2]
    values = F.linear(tokens, qkv_weight[2 * dim :], None if qkv_bias is None else qkv_bias[2 * dim :])
    return F.linear(_mix(values, attention), proj_weight, proj_bias)


def _mix(values: Tensor, attention: Tensor) -> Tensor:
    """Values (B, N, D) mixed by the attention (B, M, C, C) of each head."""
    heads = values.unflatten(2, (attention.shape[1], -1)).transpose(1, 2)
    return (heads @ attention.to(values.dtype).mT).transpose(1, 2).flatten(2)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Each product in the precision of its factors, on devices that have autocast at all."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least: sums over N tokens overflow float16, and bfloat16 has 8 bits."""
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
    """Attention of the class token's query (B, D) over tokens (B, N, D), without their keys and values: (B, D)."""
    vectors, offsets = class_query(query, key_weight, key_bias, num_heads)
    weights = (vectors @ tokens.mT + offsets).softmax(dim=-1)
    return class_value(weights @ tokens, value_weight, value_bias)


def class_query(
    query: Tensor, key_weight: Tensor, key_bias: Tensor | None, num_heads: int
) -> tuple[Tensor, Tensor | float]:
    """Vectors (B, M, D) whose products with the tokens, plus offsets (B, M, 1), are the attention's scores."""
    batch, dim = query.shape
    query = query.view(batch, num_heads, 1, -1) * (dim // num_heads) ** -0.5
    vectors = (query @ key_weight.view(num_heads, -1, dim)).squeeze(2)
    # The softmax does not see what is common to a head's scores; the bias still gets its gradient, 0.
    offsets = 0.0 if key_bias is None else (query @ key_bias.view(num_heads, -1, 1)).squeeze(3)
    return vectors, offsets


def class_value(mixed: Tensor, value_weight: Tensor, value_bias: Tensor | None) -> Tensor:
    """Values (B, D) of tokens (B, M, D), one a head, that the attention has mixed."""
    batch, num_heads, dim = mixed.shape
    values = value_weight.view(num_heads, -1, dim) @ mixed[..., None]
    return values.reshape(batch, dim) if value_bias is None else values.reshape(batch, dim) + value_bias
