"""LayerNorm for the kernels: the statistics of each token, and normalised tokens without the affine part."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

NUMBERS_AT_ONCE = 4096
"""Number of elements that a program has in registers."""


@triton.jit
def standardise(tokens, rows, columns, num_tokens, eps, dim: tl.constexpr):
    """Returns normalised tokens (rows, columns), 0 outside of the tensor; their means and inverse deviations (rows).

    All are float32.
    """
    mask = (rows < num_tokens)[:, None] & (columns < dim)[None, :]
    values = tl.load(tokens + rows[:, None] * dim + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=1) / dim
    centred = tl.where(mask, values - mean[:, None], 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / dim + eps)
    return centred * inverse_deviation[:, None], mean, inverse_deviation


@triton.jit
def _statistics(
    tokens, means, inverse_deviations, num_tokens, eps, dim: tl.constexpr, num_rows: tl.constexpr, width: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * num_rows + tl.arange(0, num_rows)
    _, mean, inverse_deviation = standardise(tokens, rows, tl.arange(0, width), num_tokens, eps, dim)
    tl.store(means + rows, mean, mask=rows < num_tokens)
    tl.store(inverse_deviations + rows, inverse_deviation, mask=rows < num_tokens)


@triton.jit
def _normalise(
    tokens,
    normed,
    sums,
    num_tokens,
    num_steps,
    eps,
    dim: tl.constexpr,
    num_rows: tl.constexpr,
    width: tl.constexpr,
):
    part, num_parts, image = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, width)
    tokens += image * num_tokens * dim
    normed += image * num_tokens * dim
    total = tl.zeros((num_rows, width), tl.float32)
    for step in range(num_steps):
        rows = (part * num_steps + step) * num_rows + tl.arange(0, num_rows)
        values, _, _ = standardise(tokens, rows, columns, num_tokens, eps, dim)
        values = values.to(normed.dtype.element_ty)
        mask = (rows < num_tokens)[:, None] & (columns < dim)[None, :]
        tl.store(normed + rows[:, None] * dim + columns[None, :], values, mask=mask)
        total += values.to(tl.float32)
    tl.store(sums + (image * num_parts + part) * dim + columns, tl.sum(total, axis=0), mask=columns < dim)


def statistics(tokens: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the mean and the inverse standard deviation of each token of (B, N, D): both (B, N) in float32.

    The LPI kernels need these statistics, because each of their programs reads only a few channels of a token. This
    kernel reads all tokens one more time. To write normalised tokens and read them again would move more bytes.
    """
    batch, num_tokens, dim = tokens.shape
    width = triton.next_power_of_2(dim)
    num_rows = max(1, NUMBERS_AT_ONCE // width)
    mean = tokens.new_empty((batch, num_tokens), dtype=torch.float32)
    inverse_deviation = torch.empty_like(mean)
    grid = (triton.cdiv(batch * num_tokens, num_rows),)
    wrap_triton(_statistics)[grid](
        tokens, mean, inverse_deviation, batch * num_tokens, eps, dim=dim, num_rows=num_rows, width=width
    )
    return mean, inverse_deviation


def normalise(tokens: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns normalised tokens (B, N, D) in the dtype of the tokens, and their sums over N: (B, D) in float32."""
    batch, num_tokens, dim = tokens.shape
    width = triton.next_power_of_2(dim)
    num_rows = max(1, NUMBERS_AT_ONCE // width)
    num_steps = 4  # blocks of rows per program, which writes one partial sum per column
    num_parts = triton.cdiv(num_tokens, num_rows * num_steps)
    normed = torch.empty_like(tokens)
    sums = tokens.new_empty((batch, num_parts, dim), dtype=torch.float32)
    wrap_triton(_normalise)[(num_parts, batch)](
        tokens, normed, sums, num_tokens, num_steps, eps, dim=dim, num_rows=num_rows, width=width
    )
    return normed, sums.sum(dim=1)
