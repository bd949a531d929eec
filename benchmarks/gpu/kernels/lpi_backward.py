"""The backward pass of local patch interaction (LPI) in training; the module `lpi_training` describes its parts."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from gpu.kernels.rows import (
    add_row,
    channel_mask,
    convolve,
    first_token,
    flip,
    gelu,
    gelu_and_slope,
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
from gpu.kernels.tiles import BACKWARD_COLUMNS, divide


@triton.jit
def window(above, here, below, i: tl.constexpr):
    """Returns the 3 x 3 window around column i + 1 of three rows, as 9 columns."""
    return above[i : i + 3] + here[i : i + 3] + below[i : i + 3]


@triton.jit
def correlate(sums, value, around):
    """Multiplies a value by each of the 9 columns of a window, and adds the products to 9 sums."""
    added = ()
    for k in tl.static_range(9):
        added = added + (tl.fma(value, around[k], sums[k]),)
    return added


@triton.jit
def _backward_of_norm(
    tokens,
    grad_out,
    sums,
    conv1_weight,
    conv1_bias,
    mean,
    inverse_deviation,
    norm_weight,
    norm_bias,
    conv2_weight,
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
    taps1 = load_taps(conv1_weight, channels, mask)
    taps2 = flip(load_taps(conv2_weight, channels, mask))
    bias1 = load_channels(conv1_bias, channels, mask)
    centre = load_channels(mean, channels, mask)
    factor = load_channels(inverse_deviation, channels, mask)
    weight = load_channels(norm_weight, channels, mask)
    bias = load_channels(norm_bias, channels, mask)
    zero = tl.zeros((num_channels,), tl.float32)
    grad_norm_bias, grad_norm_weight, grad_bias2, grad_taps2 = zero, zero, zero, repeat(zero, 9)
    for image in range(tl.program_id(2), batch, tl.num_programs(2)):
        first = first_token(image, height, width, first_row - 1, first_column - 1) * dim
        pointers = tokens + first + channels
        grad_pointers = grad_out + first + channels
        above, here = repeat(bias1, num_columns), repeat(bias1, num_columns)
        grad_above, grad_here = repeat(zero, num_columns + 2), repeat(zero, num_columns + 2)
        for row in range(first_row - 1, end_row + 1):
            known = in_row((row >= 0) & (row < height), inside, num_columns + 2)
            values = pad(load_row(pointers, known, mask, dim, num_columns + 2), known, num_columns + 2)
            grad_below = pad(load_row(grad_pointers, known, mask, dim, num_columns + 2), known, num_columns + 2)
            hidden, above, here = convolve(values, above, here, taps1, bias1, num_columns)  # row - 1
            grad_hidden = add_row(repeat(zero, num_columns), grad_above, taps2, 0, num_columns)  # row - 1
            grad_hidden = add_row(grad_hidden, grad_here, taps2, 3, num_columns)
            grad_hidden = add_row(grad_hidden, grad_below, taps2, 6, num_columns)
            known = in_row(row > first_row, inside[1:-1], num_columns)
            grad_hidden = pad(grad_hidden, known, num_columns)
            for i in tl.static_range(num_columns):
                around = window(grad_above, grad_here, grad_below, i)
                normed = (gelu(hidden[i]) - centre) * factor
                grad_norm_bias += grad_hidden[i]
                grad_norm_weight += grad_hidden[i] * normed
                grad_bias2 += tl.where(known[i], around[4], 0.0)
                grad_taps2 = correlate(grad_taps2, tl.where(known[i], normed * weight + bias, 0.0), around)
            grad_above, grad_here = grad_here, grad_below
            pointers += width * dim
            grad_pointers += width * dim
    all_sums = (grad_norm_bias, grad_norm_weight, grad_bias2) + flip(grad_taps2)
    store_sums(sums, all_sums, channels, mask, dim, 12)


@triton.jit
def _backward(
    tokens,
    grad_out,
    grad_tokens,
    sums,
    conv1_weight,
    conv1_bias,
    mean,
    inverse_deviation,
    norm_weight,
    mean_grad,
    mean_grad_normed,
    conv2_weight,
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
    inside = inside_columns(first_column - 2, width, whole, 2, num_columns + 4)
    taps1 = load_taps(conv1_weight, channels, mask)
    taps2 = flip(load_taps(conv2_weight, channels, mask))
    bias1 = load_channels(conv1_bias, channels, mask)
    centre = load_channels(mean, channels, mask)
    factor = load_channels(inverse_deviation, channels, mask)
    weight = load_channels(norm_weight, channels, mask)
    shift = load_channels(mean_grad, channels, mask)
    slope_shift = load_channels(mean_grad_normed, channels, mask)
    zero = tl.zeros((num_channels,), tl.float32)
    grad_bias1, grad_taps1 = zero, repeat(zero, 9)
    for image in range(tl.program_id(2), batch, tl.num_programs(2)):
        first = first_token(image, height, width, first_row - 2, first_column - 2) * dim
        pointers = tokens + first + channels
        grad_pointers = grad_out + first + channels
        out_pointers = grad_tokens + first + (2 - 2 * width) * dim + channels
        above1, here1 = repeat(bias1, num_columns + 2), repeat(bias1, num_columns + 2)
        above2, here2 = repeat(zero, num_columns + 2), repeat(zero, num_columns + 2)
        above3, here3 = repeat(zero, num_columns), repeat(zero, num_columns)
        values_above, values_here = repeat(zero, num_columns + 4), repeat(zero, num_columns + 4)
        for row in range(first_row - 2, end_row + 2):
            known = in_row((row >= 0) & (row < height), inside, num_columns + 4)
            values = pad(load_row(pointers, known, mask, dim, num_columns + 4), known, num_columns + 4)
            grads = pad(load_row(grad_pointers, known, mask, dim, num_columns + 4), known, num_columns + 4)
            hidden, above1, here1 = convolve(values, above1, here1, taps1, bias1, num_columns + 2)  # row - 1
            grad_hidden, above2, here2 = convolve(grads, above2, here2, taps2, zero, num_columns + 2)  # row - 1
            grad_convolved = ()
            for i in tl.static_range(num_columns + 2):
                activated, slope = gelu_and_slope(hidden[i])
                normed = (activated - centre) * factor
                grad_activated = weight * factor * (grad_hidden[i] - shift - normed * slope_shift)
                grad_convolved = grad_convolved + (grad_activated * slope,)
            known = in_row((row >= 1) & (row <= height), inside[1:-1], num_columns + 2)
            grad_convolved = pad(grad_convolved, known, num_columns + 2)
            mine = (row > first_row) & (row <= end_row)
            for i in tl.static_range(num_columns):
                value = tl.where(mine, grad_convolved[i + 1], 0.0)
                grad_bias1 += value
                grad_taps1 = correlate(grad_taps1, value, window(values_above, values_here, values, i + 1))
            result, above3, here3 = convolve(grad_convolved, above3, here3, flip(taps1), zero, num_columns)  # row - 2
            known = in_row(row >= first_row + 2, inside[2:-2], num_columns)
            for i in tl.static_range(num_columns):
                tl.store(out_pointers + i * dim, result[i], mask=mask & known[i])
            values_above, values_here = values_here, values
            pointers += width * dim
            grad_pointers += width * dim
            out_pointers += width * dim
    store_sums(sums, (grad_bias1,) + grad_taps1, channels, mask, dim, 10)


@triton_op("xcit::lpi_backward", mutates_args={})
def lpi_backward(
    grad_out: Tensor,
    tokens: Tensor,
    height: int,
    width: int,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_eps: float,
    conv2_weight: Tensor,
    mean: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of `lpi_training` from the gradient of its output (B, N, D), its inputs and its statistics.

    Returns:
        Gradients of the tokens, and of weight and bias of the first convolution, the norm and the second convolution.
    """
    tokens, grad_out = tokens.contiguous(), grad_out.contiguous()
    conv1_weight, conv2_weight = conv1_weight.contiguous(), conv2_weight.contiguous()
    conv1_bias, norm_weight, norm_bias = conv1_bias.contiguous(), norm_weight.contiguous(), norm_bias.contiguous()
    batch, num_tokens, dim = tokens.shape
    tiles = divide(batch, height, width, dim, most_columns=BACKWARD_COLUMNS, sums=True)
    num_sums = tiles.grid[1] * tiles.grid[2]
    inverse_deviation = (variance + norm_eps).rsqrt()
    partial = tokens.new_empty((num_sums, 12, dim), dtype=torch.float32)
    wrap_triton(_backward_of_norm)[tiles.grid](
        tokens,
        grad_out,
        partial,
        conv1_weight,
        conv1_bias,
        mean,
        inverse_deviation,
        norm_weight,
        norm_bias,
        conv2_weight,
        batch,
        height,
        width,
        tiles.num_rows,
        **tiles.constants,
    )
    sums = partial.sum(dim=0)
    grad_norm_bias, grad_norm_weight, grad_bias2, grad_taps2 = sums[0], sums[1], sums[2], sums[3:].t()
    grad_tokens = torch.empty_like(tokens)
    partial = tokens.new_empty((num_sums, 10, dim), dtype=torch.float32)
    wrap_triton(_backward)[tiles.grid](
        tokens,
        grad_out,
        grad_tokens,
        partial,
        conv1_weight,
        conv1_bias,
        mean,
        inverse_deviation,
        norm_weight,
        grad_norm_bias / (batch * num_tokens),
        grad_norm_weight / (batch * num_tokens),
        conv2_weight,
        batch,
        height,
        width,
        tiles.num_rows,
        **tiles.constants,
    )
    sums = partial.sum(dim=0)
    grad_bias1, grad_taps1 = sums[0], sums[1:].t()
    return (
        grad_tokens,
        # The gradients are copied, because the outputs of a custom operator must not share memory.
        grad_taps1.reshape(conv1_weight.shape).to(conv1_weight.dtype, copy=True),
        grad_bias1.to(conv1_weight.dtype, copy=True),
        grad_norm_weight.to(norm_weight.dtype, copy=True),
        grad_norm_bias.to(norm_weight.dtype, copy=True),
        grad_taps2.reshape(conv2_weight.shape).to(conv2_weight.dtype, copy=True),
        grad_bias2.to(conv2_weight.dtype, copy=True),
    )
