"""Divides a batch of images among the programs of the LPI kernels."""

from typing import NamedTuple

import triton

CHANNELS = 64
"""Number of channels of a program; the width of every published model is a multiple of it."""

NUM_WARPS = 2
"""Number of warps of a program: two warps have 64 threads, one for each channel."""

ENOUGH_PROGRAMS = 2048
"""Number of programs that fill a large GPU.

If images, strips and blocks of channels give fewer programs, the rows of an image are divided too. If they give more, a
program may sum over several images.
"""

COLUMNS, BACKWARD_COLUMNS = 8, 7
"""Largest numbers of columns of a strip, forward and backward: the rows of all maps must fit in the registers."""


class Tiles(NamedTuple):
    """The grid of programs (channels, tiles, images), the rows of a tile, and a kernel's compile-time constants."""

    grid: tuple[int, int, int]
    num_rows: int
    constants: dict[str, int]


def divide(batch: int, height: int, width: int, dim: int, *, most_columns: int, sums: bool = False) -> Tiles:
    """Returns the tiles of a batch of images of height x width x dim.

    Args:
        batch: number of images.
        height: rows of the token grid.
        width: columns of the token grid.
        dim: number of channels.
        most_columns: largest number of columns of a tile.
        sums: whether a program may sum over several images, so that fewer partial sums are written and added.
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
    """Returns the number of columns of a strip, which is at most `most`.

    It divides the image's width if a number from most // 2 + 1 to most does.
    """
    return next((num for num in range(most, most // 2, -1) if width % num == 0), min(width, most))
