"""Local patch interaction (LPI) in training: batch normalisation uses the batch's own statistics.

x is the input, and y is the output:

    z = conv1(x), g = GELU(z), n = (g - mean) / deviation, h = weight n + bias, y = conv2(h)

dx is the gradient of x, and so on. The kernels pass over the tokens four times, and compute:

    moments            sums of g and g^2
    forward            y
    backward of norm   sums of dh, dh n, dy, and dy h for each tap of conv2, with dh = conv2^T(dy)
    backward           dx, and sums of dz and dz x for each tap of conv1

Each pass computes z, g, h and dh again if it needs them. So only x is stored between the forward and the backward pass.
Each program writes its partial sums, and the partial sums are added afterwards. So the result is the same in every run.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from gpu.kernels.lpi_backward import lpi_backward
from gpu.kernels.rows import (
    activate,
    channel_mask,
    convolve,
    first_token,
    gelu,
    in_row,
    inside_columns,
    load_channels,
    load_row,
    load_taps,
    pad,
    place,
    repeat,
    store_sums,
)
from gpu.kernels.tiles import COLUMNS, divide


@triton.jit
def _moments(
    tokens,
    sums,
    conv1_weight,
    conv1_bias,
    batch,
    height,
    width,
    num_rows,
    dim: tl.constexpr,
    num_channels: tl.constexpr,
    num_columns: tl.constexpr,
    whole: tl.constexpr,
):
    channels, first_row, end_row, first_column = place(height, width, num_rows, num_channels, num_columns)
    mask = channel_mask(channels, dim, num_channels)
    inside = inside_columns(first_column - 1, width, whole, 1, num_columns + 2)
    taps = load_taps(conv1_weight, channels, mask)
    bias = load_channels(conv1_bias, channels, mask)
    total = tl.zeros((num_channels,), tl.float32)
    squares = tl.zeros((num_channels,), tl.float32)
    for image in range(tl.program_id(2), batch, tl.num_programs(2)):
        pointers = tokens + first_token(image, height, width, first_row - 1, first_column - 1) * dim + channels
        above, here = repeat(bias, num_columns), repeat(bias, num_columns)
        for row in range(first_row - 1, end_row + 1):
            known = in_row((row >= 0) & (row < height), inside, num_columns + 2)
            values = pad(load_row(pointers, known, mask, dim, num_columns + 2), known, num_columns + 2)
            hidden, above, here = convolve(values, above, here, taps, bias, num_columns)  # row - 1
            known = in_row(row > first_row, inside[1:-1], num_columns)
            for i in tl.static_range(num_columns):
                value = tl.where(known[i], gelu(hidden[i]), 0.0)
                total += value
                squares += value * value
            pointers += width * dim
    store_sums(sums, (total, squares), channels, mask, dim, 2)


@triton.jit
def _forward(
    tokens,
    out,
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
    channels, first_row, end_row, first_column = place(height, width, num_rows, num_channels, num_columns)
    mask = channel_mask(channels, dim, num_channels)
    inside = inside_columns(first_column - 2, width, whole, 2, num_columns + 4)
    taps1 = load_taps(conv1_weight, channels, mask)
    taps2 = load_taps(conv2_weight, channels, mask)
    bias1 = load_channels(conv1_bias, channels, mask)
    bias2 = load_channels(conv2_bias, channels, mask)
    scale = load_channels(hidden_scale, channels, mask)
    shift = load_channels(hidden_shift, channels, mask)
    first = first_token(tl.program_id(2), height, width, first_row - 2, first_column)
    tokens += (first - 2) * dim + channels
    out += (first - 2 * width) * dim + channels
    above1, here1 = repeat(bias1, num_columns + 2), repeat(bias1, num_columns + 2)
    above2, here2 = repeat(bias2, num_columns), repeat(bias2, num_columns)
    for row in range(first_row - 2, end_row + 2):
        known = in_row((row >= 0) & (row < height), inside, num_columns + 4)
        values = pad(load_row(tokens, known, mask, dim, num_columns + 4), known, num_columns + 4)
        hidden, above1, here1 = convolve(values, above1, here1, taps1, bias1, num_columns + 2)  # row - 1
        known = in_row((row >= 1) & (row <= height), inside[1:-1], num_columns + 2)
        hidden = activate(hidden, scale, shift, known, num_columns + 2)
        result, above2, here2 = convolve(hidden, above2, here2, taps2, bias2, num_columns)  # row - 2
        known = in_row(row >= first_row + 2, inside[2:-2], num_columns)
        for i in tl.static_range(num_columns):
            tl.store(out + i * dim, result[i], mask=mask & known[i])
        tokens += width * dim
        out += width * dim


@triton_op("xcit::lpi_training", mutates_args={})
def lpi_training(
    tokens: Tensor,
    height: int,
    width: int,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes LPI in training mode on tokens; it is differentiable, and saves only its inputs for the backward pass.

    It returns the batch's statistics. The caller must update the running statistics of the batch norm.

    Args:
        tokens: (B, N, D) of an H x W grid: float32, bfloat16 or float16; arithmetic is in float32.
        height: H.
        width: W.
        conv1_weight: (D, 1, 3, 3).
        conv1_bias: (D,).
        norm_weight: weight of batch normalisation (D,).
        norm_bias: bias of batch normalisation (D,).
        norm_eps: epsilon of batch normalisation.
        conv2_weight: (D, 1, 3, 3).
        conv2_bias: (D,).

    Returns:
        The output (B, N, D) in the dtype of the tokens. Mean and biased variance of the norm's input, (D,) in float32.
    """
    tokens, conv1_weight, conv2_weight = tokens.contiguous(), conv1_weight.contiguous(), conv2_weight.contiguous()
    conv1_bias, conv2_bias = conv1_bias.contiguous(), conv2_bias.contiguous()
    batch, num_tokens, dim = tokens.shape
    assert num_tokens == height * width
    tiles = divide(batch, height, width, dim, most_columns=COLUMNS, sums=True)
    partial = tokens.new_empty((tiles.grid[1] * tiles.grid[2], 2, dim), dtype=torch.float32)
    wrap_triton(_moments)[tiles.grid](
        tokens, partial, conv1_weight, conv1_bias, batch, height, width, tiles.num_rows, **tiles.constants
    )
    mean, mean_square = (partial.sum(dim=0, dtype=torch.float64) / (batch * num_tokens)).unbind()
    variance = (mean_square - mean.square()).clamp(min=0)
    scale = norm_weight / (variance + norm_eps).sqrt()
    shift = norm_bias - mean * scale
    tiles = divide(batch, height, width, dim, most_columns=COLUMNS)
    out = torch.empty_like(tokens)
    wrap_triton(_forward)[tiles.grid](
        tokens,
        out,
        conv1_weight,
        conv1_bias,
        scale.float(),
        shift.float(),
        conv2_weight,
        conv2_bias,
        height,
        width,
        tiles.num_rows,
        **tiles.constants,
    )
    return out, mean.float(), variance.float()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, ctx.height, ctx.width, weight1, bias1, norm_weight, norm_bias, ctx.norm_eps, weight2, _ = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(tokens, weight1, bias1, norm_weight, norm_bias, weight2, mean, variance)


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight1, bias1, norm_weight, norm_bias, weight2, mean, variance = ctx.saved_tensors
    norm = (norm_weight, norm_bias, ctx.norm_eps)
    grads = lpi_backward(grad_out, tokens, ctx.height, ctx.width, weight1, bias1, *norm, weight2, mean, variance)
    return grads[0], None, None, *grads[1:5], None, *grads[5:]


lpi_training.register_autograd(_differentiate, setup_context=_keep)
