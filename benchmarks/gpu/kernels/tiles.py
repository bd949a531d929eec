"""How the LPI kernels divide a batch of images among programs."""

from typing import NamedTuple

import triton

CHANNELS = 64
"""Number of channels of a program: it divides the width of every published model."""

NUM_WARPS = 2
"""Number of warps of a program: two have a thread for each of the 64 channels."""

ENOUGH_PROGRAMS = 2048
"""Number of programs that fill a large GPU.

If images and channels give fewer programs, the rows of an image are divided too. If they give more, a program may sum
over several images.
"""

COLUMNS, BACKWARD_COLUMNS = 8, 7
"""The most columns of a strip that fit in the registers; the backward pass keeps rows of more maps in them."""


class Tiles(NamedTuple):
    """Programs along channels, tiles and images; rows of a tile; and the constants that a kernel is compiled for."""

    grid: tuple[int, int, int]
    num_rows: int
    constants: dict[str, int]


def divide(batch: int, height: int, width: int, dim: int, *, most_columns: int, sums: bool = False) -> Tiles:
    """Returns the tiles of `batch` images of height x width x dim.

    Args:
        batch: B.
        height: H.
        width: W.
        dim: D.
        most_columns: largest number of columns of a tile.
        sums: whether a program sums over images, so that there are fewer partial sums to write and to add.
    """
    num_columns = columns_at_once(width, most_columns)
    num_blocks, num_strips = triton.cdiv(dim, CHANNELS), triton.cdiv(width, num_columns)
    num_rows = max(4, triton.cdiv(height, triton.cdiv(ENOUGH_PROGRAMS, num_blocks * num_strips * max(1, batch))))
    num_tiles = num_strips * triton.cdiv(height, num_rows)
    num_images = max(1, num_blocks * num_tiles * batch // ENOUGH_PROGRAMS) if sums else 1
    constants = {"dim": dim, "num_channels": CHANNELS, "num_columns": num_columns, "whole": width % num_columns == 0}
    return Tiles(
        (num_blocks, num_tiles, triton.cdiv(batch, num_images)), num_rows, constants | {"num_warps": NUM_WARPS}
    )


def columns_at_once(width: int, most: int) -> int:
    """Returns the number of columns of a strip, at most `most`.

    All strips have the same width if the image's width is divisible by a number between half of `most` and `most`.
    """
    return next((num for num in range(most, most // 2, -1) if width % num == 0), min(width, most))
