"""Device functions of the LPI kernels: depthwise 3x3 convolutions that go down an image row by row, in registers.

A program has a strip of columns and a block of channels. A row is a Python tuple of columns, and each column is a
tensor of channels. So the neighbours of a column are other entries of the tuple, in the same thread, and shared memory
is not needed. A convolution is three tuples of unfinished sums: a new row finishes the row above it, adds to its own
row, and starts the row below.
"""

import triton
import triton.language as tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
INVERSE_SQRT_2_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def place(height, width, num_rows, num_channels: tl.constexpr, num_columns: tl.constexpr):
    """Returns the program's channels, by axis 0; its first row, end row and first column, by axis 1."""
    channels = tl.program_id(0) * num_channels + tl.arange(0, num_channels)
    num_strips = tl.cdiv(width, num_columns)
    first_row = tl.program_id(1) // num_strips * num_rows
    first_column = tl.program_id(1) % num_strips * num_columns
    return channels, first_row, tl.minimum(first_row + num_rows, height), first_column


@triton.jit
def first_token(image, height, width, row, column):
    """Returns the number of the token at a row and column of an image of the batch; 64 bits, for large images."""
    return tl.cast(image, tl.int64) * height * width + row * width + column


@triton.jit
def channel_mask(channels, dim: tl.constexpr, num: tl.constexpr):
    """Returns which of a block's `num` channels exist; the compiler knows that all do if blocks divide the width."""
    mask = tl.full((num,), True, tl.int1)
    if dim % num != 0:
        mask &= channels < dim
    return mask


@triton.jit
def load_channels(pointer, channels, mask):
    """Returns the parameters of the block's channels, float32."""
    return tl.load(pointer + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_taps(weight, channels, mask):
    """Returns the 9 weights of each channel of a contiguous (D, 1, 3, 3), row by row."""
    taps = ()
    for i in tl.static_range(9):
        taps = taps + (tl.load(weight + channels * 9 + i, mask=mask, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def flip(taps):
    """Returns the taps of the transposed convolution."""
    flipped = ()
    for i in tl.static_range(9):
        flipped = flipped + (taps[8 - i],)
    return flipped


@triton.jit
def store_sums(pointer, sums, channels, mask, dim: tl.constexpr, num: tl.constexpr):
    """Writes the program's `num` sums for each channel."""
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
    """Returns whether each of `num` columns from `first` lies in the image.

    With `whole` strips, only a halo may not.
    """
    inside = ()
    for i in tl.static_range(num):
        # A column is compared only if it may be outside: comparing all would be a tenth of the instructions. The value
        # true is written as a comparison, so that the interpreter accepts it too.
        if whole and (i >= halo and i < num - halo):
            inside = inside + (first == first,)
        else:
            inside = inside + ((first + i >= 0) & (first + i < width),)
    return inside


@triton.jit
def load_row(pointers, inside, mask, dim: tl.constexpr, num: tl.constexpr):
    """Returns `num` columns from `pointers` on, float32; values outside of the image are arbitrary."""
    row = ()
    for i in tl.static_range(num):
        row = row + (tl.load(pointers + i * dim, mask=mask & inside[i]).to(tl.float32),)
    return row


@triton.jit
def pad(row, inside, num: tl.constexpr):
    """Returns the row with zeros in the columns that are not inside."""
    padded = ()
    for i in tl.static_range(num):
        padded = padded + (tl.where(inside[i], row[i], 0.0),)
    return padded


@triton.jit
def in_row(inside_row, inside, num: tl.constexpr):
    """Returns `inside` if the row lies in the image, else false."""
    both = ()
    for i in tl.static_range(num):
        both = both + (inside_row & inside[i],)
    return both


@triton.jit
def add_row(sums, row, taps, k: tl.constexpr, num: tl.constexpr):
    """Adds to each of `num` sums the three columns of a row around it, each times a tap from number k on."""
    added = ()
    for i in tl.static_range(num):  # fma is explicit, because Triton may not fuse by default
        total = tl.fma(row[i + 1], taps[k + 1], tl.fma(row[i], taps[k], sums[i]))
        added = added + (tl.fma(row[i + 2], taps[k + 2], total),)
    return added


@triton.jit
def convolve(row, above, here, taps, bias, num: tl.constexpr):
    """Adds a row of `num` + 2 columns to a convolution, of which `above` and `here` are the unfinished sums.

    Returns the finished row above, of `num` columns, then the sums that become `above` and `here` at the next row.
    """
    below = repeat(bias, num)
    return add_row(above, row, taps, 6, num), add_row(here, row, taps, 3, num), add_row(below, row, taps, 0, num)


@triton.jit
def normal_tail(x):
    """Returns the probability that a normal variable exceeds |x|, and exp(-x^2 / 2).

    The formula is number 7.1.26 of Abramowitz and Stegun. Its error is at most 8e-8, so GELU from it is as exact as
    from a float32 erf (tested), with half the instructions.
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
    """Returns GELU: x times the normal distribution function."""
    tail, _ = normal_tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@triton.jit
def activate(row, scale, shift, inside, num: tl.constexpr):
    """Applies GELU, then the channels' affine map; the result is 0 outside of the image, as padding."""
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
