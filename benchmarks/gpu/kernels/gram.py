"""Computes normalised tokens X and their Gram matrix X^T X, which cross-covariance attention needs.

Shapes: `B` batch, `N` tokens, `D` width.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from gpu.kernels import INTERPRETED
from gpu.kernels.layer_norm import normalise

ENOUGH_PROGRAMS = 264
"""Number of programs that fill a large GPU: two on each of an H100's 132 multiprocessors.

If the tiles of the Gram matrices give fewer programs, the N tokens are split among more programs."""


class Tile(NamedTuple):
    """The shape of a program's work, side x side elements and `depth` tokens at a time, and Triton's launch options."""

    side: int
    depth: int
    num_warps: int
    num_stages: int


def choose_tile(dim: int, dtype: torch.dtype) -> Tile:
    """Returns the tile for a width; smaller in float32, which uses more registers and does not use tensor cores."""
    if dtype == torch.float32:
        return Tile(side=64, depth=32, num_warps=4, num_stages=3)
    # 4 warps, because with 8 the compiler would run the products of a 128 x 128 tile one after another.
    return Tile(side=128 if dim % 128 == 0 else 64, depth=64, num_warps=4, num_stages=3)


@triton.jit
def _gram(
    normed,
    out,
    num_tokens,
    split_tokens,
    dim: tl.constexpr,
    side: tl.constexpr,
    depth: tl.constexpr,
    upcast: tl.constexpr,
):
    """Computes a tile on or above the diagonal, and its mirror image, summed over the tokens of one split."""
    pair, split = tl.program_id(0), tl.program_id(1)
    image, num_images = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    right = 0  # tiles are numbered column by column: column k begins at k (k + 1) / 2
    for k in tl.static_range(1, (dim + side - 1) // side):
        right += (pair >= k * (k + 1) // 2).to(tl.int32)
    left = pair - right * (right + 1) // 2
    left_columns = left * side + tl.arange(0, side)
    right_columns = right * side + tl.arange(0, side)
    first = split * split_tokens
    num_rows = tl.minimum(split_tokens, num_tokens - first)
    normed += (image * num_tokens + first) * dim
    rows = tl.arange(0, depth)
    left_pointers = normed + rows[:, None] * dim + left_columns[None, :]
    right_pointers = normed + rows[:, None] * dim + right_columns[None, :]

    gram = tl.zeros((side, side), tl.float32)
    for start in range(0, num_rows, depth):
        known = (rows < num_rows - start)[:, None]
        a = tl.load(left_pointers, mask=known & (left_columns < dim)[None, :], other=0.0)
        b = tl.load(right_pointers, mask=known & (right_columns < dim)[None, :], other=0.0)
        if upcast:
            a, b = a.to(tl.float32), b.to(tl.float32)
        gram = tl.dot(tl.trans(a), b, gram, input_precision="ieee")
        left_pointers += depth * dim  # pointers are 64-bit; an offset could exceed 32 bits
        right_pointers += depth * dim

    out += (split * num_images + image) * dim * dim
    # Each element above the diagonal is written to two positions, so that the matrix is exactly symmetric.
    rows, columns = left_columns[:, None], right_columns[None, :]
    tl.store(out + rows * dim + columns, gram, mask=(rows <= columns) & (columns < dim))
    rows, columns = right_columns[:, None], left_columns[None, :]
    tl.store(out + rows * dim + columns, tl.trans(gram), mask=(rows > columns) & (rows < dim))


@triton_op("xcit::normalised_gram", mutates_args={})
def normalised_gram(tokens: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Applies LayerNorm without its affine part, and computes the Gram matrix and the column sums of the output X.

    The sums are accumulated in float32 in a fixed order.

    There are two kernels: the first writes X, and the second reads X. A single kernel that normalises while it
    multiplies would move the same number of bytes as the two kernels, because its statistics also read the tokens. It
    would normalise the tokens again for each of the D / 128 tiles in a row, and move its operands to the tensor cores
    through registers. X must be written in any case, because it is needed after the attention.

    Args:
        tokens: (B, N, D) of float32, bfloat16 or float16.
        eps: epsilon of LayerNorm, added to the variance.

    Returns:
        X (B, N, D) in the dtype of the tokens; X^T X (B, D, D) in float32; the sum of X over N, (B, D) in float32.
    """
    batch, num_tokens, dim = tokens.shape
    normed, sums = normalise(tokens.contiguous(), eps)
    side, depth, num_warps, num_stages = choose_tile(dim, tokens.dtype)
    num_tiles = triton.cdiv(dim, side)
    num_pairs = num_tiles * (num_tiles + 1) // 2
    num_splits = min(triton.cdiv(ENOUGH_PROGRAMS, num_pairs * max(1, batch)), triton.cdiv(num_tokens, depth))
    split_tokens = triton.cdiv(triton.cdiv(num_tokens, num_splits), depth) * depth
    num_splits = triton.cdiv(num_tokens, split_tokens)
    partial = tokens.new_empty((num_splits, batch, dim, dim), dtype=torch.float32)
    wrap_triton(_gram)[(num_pairs, num_splits, batch)](
        normed,
        partial,
        num_tokens,
        split_tokens,
        dim=dim,
        side=side,
        depth=depth,
        upcast=INTERPRETED,  # the interpreter has no product of bfloat16
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return normed, partial[0] if num_splits == 1 else partial.sum(dim=0), sums
