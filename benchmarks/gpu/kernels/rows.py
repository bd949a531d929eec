"""Device functions of the LPI kernels: depthwise 3x3 convolutions that go down an image row by row, in registers.

A program computes a strip of columns and a block of channels. A row is a Python tuple of columns, and each column is a
tensor of channels. So the neighbours of a column are other entries of the tuple, in the same thread, and shared memory
is not needed. A convolution has unfinished sums for three output rows. A new input row finishes the output row above,
adds to the output row of the same index, and starts the output row below.
"""

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def place(height, width, num_rows, num_channels: tl.constexpr, num_columns: tl.constexpr):
    """Returns the program's channels (from grid axis 0), and its first row, end row and first column (from axis 1)."""
    channels = tl.program_id(0) * num_channels + tl.arange(0, num_channels)
    num_strips = tl.cdiv(width, num_columns)
    first_row = tl.program_id(1) // num_strips * num_rows
    first_column = tl.program_id(1) % num_strips * num_columns
    return channels, first_row, tl.minimum(first_row + num_rows, height), first_column


@triton.jit
def first_token(image, height, width, row, column):
    """Returns the index of the token at a row and column of an image of the batch, in 64 bits for large batches."""
    return tl.cast(image, tl.int64) * height * width + row * width + column


@triton.jit
def channel_mask(channels, dim: tl.constexpr, num: tl.constexpr):
    """Returns which channels of a block are below `dim`; a constant mask if the block's size `num` divides `dim`."""
    mask = tl.full((num,), True, tl.int1)
    if dim % num != 0:
        mask &= channels < dim
    return mask


@triton.jit
def load_channels(pointer, channels, mask):
    """Returns the parameters of the block's channels in float32."""
    return tl.load(pointer + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_taps(weight, channels, mask):
    """Returns the 9 weights of each channel, row by row, from a contiguous tensor (D, 1, 3, 3)."""
    taps = ()
    for i in tl.static_range(9):
        taps = taps + (tl.load(weight + channels * 9 + i, mask=mask, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def flip(taps):
    """Returns the taps of the transposed convolution: the same taps in reverse order."""
    flipped = ()
    for i in tl.static_range(9):
        flipped = flipped + (taps[8 - i],)
    return flipped


@triton.jit
def store_sums(pointer, sums, channels, mask, dim: tl.constexpr, num: tl.constexpr):
    """Writes the `num` sums of this program for each channel."""
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    for k in tl.static_range(num):
        tl.store(pointer + (program * num + k) * dim + channels, sums[k], mask=mask)


@triton.jit
def repeat(value, num: tl.constexpr):
    """Returns a row of `num` equal columns."""
    row = ()
    for _ in tl.static_range(num):
        row = row + (value,)
    return row


@triton.jit
def inside_columns(first, width, whole: tl.constexpr, halo: tl.constexpr, num: tl.constexpr):
    """Returns, for each of `num` columns from `first` on, whether it is inside the image.

    `whole` means that the strips divide the width. Then only columns of a halo can be outside.
    """
    inside = ()
    for i in tl.static_range(num):
        # Only columns that can be outside are compared: to compare all would be a tenth of the instructions. True is
        # written as a comparison that always holds, because the interpreter does not accept a constant.
        if whole and (i >= halo and i < num - halo):
            inside = inside + (first == first,)
        else:
            inside = inside + ((first + i >= 0) & (first + i < width),)
    return inside


@triton.jit
def load_row(pointers, inside, mask, dim: tl.constexpr, num: tl.constexpr):
    """Returns `num` columns from `pointers` on, in float32; values outside of the image are arbitrary."""
    row = ()
    for i in tl.static_range(num):
        row = row + (tl.load(pointers + i * dim, mask=mask & inside[i]).to(tl.float32),)
    return row


@triton.jit
def pad(row, inside, num: tl.constexpr):
    """Returns the row with zeros in the columns that are outside of the image."""
    padded = ()
    for i in tl.static_range(num):
        padded = padded + (tl.where(inside[i], row[i], 0.0),)
    return padded


@triton.jit
def in_row(inside_row, inside, num: tl.constexpr):
    """Returns `inside` if the row is inside the image, else false for every column."""
    both = ()
    for i in tl.static_range(num):
        both = both + (inside_row & inside[i],)
    return both


@triton.jit
def add_row(sums, row, taps, k: tl.constexpr, num: tl.constexpr):
    """Adds to the sum of each of `num` columns: the three columns around it, times the taps k, k + 1 and k + 2."""
    added = ()
    for i in tl.static_range(num):  # explicit fma, because Triton may not fuse multiply and add
        total = tl.fma(row[i + 1], taps[k + 1], tl.fma(row[i], taps[k], sums[i]))
        added = added + (tl.fma(row[i + 2], taps[k + 2], total),)
    return added


@triton.jit
def convolve(row, above, here, taps, bias, num: tl.constexpr):
    """Adds an input row of `num` + 2 columns to the unfinished sums `above` and `here` of a convolution.

    Returns three rows of `num` columns: the finished row above, and `above` and `here` for the next input row.
    """
    below = repeat(bias, num)
    return add_row(above, row, taps, 6, num), add_row(here, row, taps, 3, num), add_row(below, row, taps, 0, num)


@triton.jit
def normal_tail(x):
    """Returns the probability that a normal variable exceeds |x|, and exp(-x^2 / 2).

    It uses formula 7.1.26 of Abramowitz and Stegun, with an error of at most 8e-8. GELU by this formula is as exact as
    GELU by a float32 erf (tested), with half of the instructions.
    """
    distance = tl.abs(x)
    t = 1.0 / (1.0 + distance * (0.3275911 * SQRT_HALF))
    polynomial = 0.5 * -1.453152027 + t * (0.5 * 1.061405429)
    polynomial = 0.5 * -0.284496736 + t * (0.5 * 1.421413741 + t * polynomial)
    polynomial = t * (0.5 * 0.254829592 + t * polynomial)
    power = tl.exp2(x * x * -HALF_LOG2_E)
    return polynomial * power, power


@triton.jit
def gelu(x):
    """Returns GELU: x times the normal cumulative distribution function of x."""
    tail, _ = normal_tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def activate(row, scale, shift, inside, num: tl.constexpr):
    """Applies GELU, then each channel's scale and shift; outside of the image, the result is 0 (padding)."""
    activated = ()
    for i in tl.static_range(num):
        activated = activated + (tl.where(inside[i], gelu(row[i]) * scale + shift, 0.0),)
    return activated


@triton.jit
def gelu_and_slope(x):
    """Returns GELU and its derivative."""
    tail, power = normal_tail(x)
    slope = tl.where(x > 0, 1.0 - tail, tail) + x * power * INVERSE_SQRT_2_PI
    return tl.maximum(x, 0.0) - tl.abs(x) * tail, slope
