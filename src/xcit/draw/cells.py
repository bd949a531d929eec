"""Maps on a grid of cells: masks of their largest cells, and maps at the size of the image."""

from typing import Any, TypeVar

import numpy as np

from xcit.errors import XCiTError

Cells = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Kind = TypeVar("Kind", bound=np.generic)


def largest_cells(maps: Cells, share: float) -> Mask:
    """Returns the smallest set of cells of each map that has `share` of the map's sum, as in DINO's pictures.

    Args:
        maps: (..., H, W), without negative values; NaN is never in the set.
        share: above 0, at most 1; DINO's videos use 0.6.

    Returns:
        (..., H, W), true in the set. Among equal cells, earlier ones count as larger.

    Raises:
        XCiTError: if `share` is out of range.
    """
    if not 0 < share <= 1:
        raise XCiTError(f"the share of the attention to keep is {share:g}, must be above 0 and at most 1")
    cells = np.nan_to_num(maps.reshape(*maps.shape[:-2], -1).astype(np.float64))
    order = np.argsort(-cells, axis=-1, kind="stable")
    ranked = np.take_along_axis(cells, order, axis=-1)
    sums = ranked.cumsum(axis=-1)
    # A cell is needed if the cells before it do not suffice.
    is_needed = np.roll(sums, 1, axis=-1) < share * sums[..., -1:]
    is_needed[..., 0] = ranked[..., 0] > 0
    kept = np.empty_like(is_needed)
    np.put_along_axis(kept, order, is_needed, axis=-1)
    return kept.reshape(maps.shape)


def at_image_size(
    maps: np.ndarray[Any, np.dtype[Kind]], size: tuple[int, ...], patch_size: int
) -> np.ndarray[Any, np.dtype[Kind]]:
    """Returns maps (..., H, W) at an image's size (..., h, w): each pixel gets the value of the nearest cell centre.

    The stem's convolutions centre cell (i, j) on the pixel (i * patch_size, j * patch_size). So the square of a cell
    lies around that pixel, not to its right and below it.
    """
    rows, columns = (
        np.minimum((np.arange(num_pixels) + patch_size // 2) // patch_size, num_cells - 1)
        for num_pixels, num_cells in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]
