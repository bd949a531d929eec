"""Local patch interaction (LPI) for inference, in one pass over the tokens, which are an image with channels last.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from gpu.kernels.layer_norm import statistics
from gpu.kernels.rows import (
    activate,
    channel_mask,
    convolve,
    first_token,
    in_row,
    inside_columns,
    load_channels,
    load_row,
    load_taps,
    place,
    repeat,
)
from gpu.kernels.tiles import COLUMNS, divide


@triton.jit
def normalise_row(row, mean, inverse_deviation, scale, shift, inside, num: tl.constexpr):
    """Applies LayerNorm with the statistics of each column's token; the result is 0 outside of the image."""
    normed = ()
    for i in tl.static_range(num):
        factor = tl.load(inverse_deviation + i, mask=inside[i])
        value = (row[i] - tl.load(mean + i, mask=inside[i])) * factor * scale + shift
        normed = normed + (tl.where(inside[i], value, 0.0),)
    return normed


@triton.jit
def _lpi(
    tokens,
    out,
    mean,
    inverse_deviation,
    norm_weight,
    norm_bias,
    conv1_weight,
    conv1_bias,
    hidden_scale,
    hidden_shift,
    conv2_weight,
    conv2_bias,
    height,
    width,
    num_rows,
    dim: tl.constexpr,
    num_channels: tl.constexpr,
    num_columns: tl.constexpr,
    whole: tl.constexpr,
):
    """Computes a tile of the output: rows x columns x channels.

    Each row of the input is read with a halo of 2 columns on both sides. From it the first convolution computes a row
    with a halo of 1 column, and from that row the second convolution computes a row without halo.
    """
    channels, first_row, end_row, first_column = place(height, width, num_rows, num_channels, num_columns)
    mask = channel_mask(channels, dim, num_channels)
    inside = inside_columns(first_column - 2, width, whole, 2, num_columns + 4)

    taps1 = load_taps(conv1_weight, channels, mask)
    taps2 = load_taps(conv2_weight, channels, mask)
    norm_scale = load_channels(norm_weight, channels, mask)
    norm_shift = load_channels(norm_bias, channels, mask)
    bias1 = load_channels(conv1_bias, channels, mask)
    bias2 = load_channels(conv2_bias, channels, mask)
    scale = load_channels(hidden_scale, channels, mask)
    shift = load_channels(hidden_shift, channels, mask)

    first = first_token(tl.program_id(2), height, width, first_row - 2, first_column)
    tokens += first * dim + channels
    out += (first - 2 * width) * dim + channels
    mean += first - 2
    inverse_deviation += first - 2
    above1, here1 = repeat(bias1, num_columns + 2), repeat(bias1, num_columns + 2)
    above2, here2 = repeat(bias2, num_columns), repeat(bias2, num_columns)
    for row in range(first_row - 2, end_row + 2):
        known = in_row((row >= 0) & (row < height), inside, num_columns + 4)
        values = load_row(tokens - 2 * dim, known, mask, dim, num_columns + 4)
        values = normalise_row(values, mean, inverse_deviation, norm_scale, norm_shift, known, num_columns + 4)
        hidden, above1, here1 = convolve(values, above1, here1, taps1, bias1, num_columns + 2)  # row - 1
        known = in_row((row >= 1) & (row <= height), inside[1:-1], num_columns + 2)
        hidden = activate(hidden, scale, shift, known, num_columns + 2)
        result, above2, here2 = convolve(hidden, above2, here2, taps2, bias2, num_columns)  # row - 2
        known = in_row(row >= first_row + 2, inside[2:-2], num_columns)
        residual = load_row(tokens - 2 * width * dim, known, mask, dim, num_columns)
        for i in tl.static_range(num_columns):
            tl.store(out + i * dim, residual[i] + result[i], mask=mask & known[i])
        tokens += width * dim
        out += width * dim
        mean += width
        inverse_deviation += width


@triton_op("xcit::lpi", mutates_args={})
def lpi(
    tokens: Tensor,
    height: int,
    width: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    hidden_scale: Tensor,
    hidden_shift: Tensor,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
) -> Tensor:
    """Computes a block's LPI branch and its residual in float32 arithmetic: tokens + LPI(LayerNorm(tokens)).

    LayerScale must already be folded into the second convolution, as in a fused model.

    Args:
        tokens: (B, N, D) of an H x W grid: float32, bfloat16 or float16.
        height: H.
        width: W.
        norm_weight: weight of LayerNorm (D,).
        norm_bias: bias of LayerNorm (D,).
        norm_eps: epsilon of LayerNorm.
        conv1_weight: (D, 1, 3, 3).
        conv1_bias: (D,).
        hidden_scale: factor of batch normalisation in evaluation mode (D,).
        hidden_shift: offset of batch normalisation in evaluation mode (D,).
        conv2_weight: (D, 1, 3, 3).
        conv2_bias: (D,).

    Returns:
        (B, N, D) in the dtype of the tokens.
    """
    tokens = tokens.contiguous()
    batch, num_tokens, dim = tokens.shape
    assert num_tokens == height * width
    mean, inverse_deviation = statistics(tokens, norm_eps)
    tiles = divide(batch, height, width, dim, most_columns=COLUMNS)
    out = torch.empty_like(tokens)
    wrap_triton(_lpi)[tiles.grid](
        tokens,
        out,
        mean,
        inverse_deviation,
        norm_weight.contiguous(),
        norm_bias.contiguous(),
        conv1_weight.contiguous(),
        conv1_bias.contiguous(),
        hidden_scale.contiguous(),
        hidden_shift.contiguous(),
        conv2_weight.contiguous(),
        conv2_bias.contiguous(),
        height,
        width,
        tiles.num_rows,
        **tiles.constants,
    )
    return out
