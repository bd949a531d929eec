"""Finds the cells with the largest values in maps (one cell per patch), and enlarges maps to the size of an image."""

from typing import Any, TypeVar

import numpy as np

from xcit.errors import XCiTError

Cells = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Kind = TypeVar("Kind", bound=np.generic)


def largest_cells(maps: Cells, share: float) -> Mask:
    """Selects the cells with the largest values in each map, as DINO does for its pictures.

    The sum of the selected cells is at least `share` times the sum of the map, with as few cells as possible.

    Args:
        maps: (..., H, W), values of at least 0, or NaN. Cells with NaN are never selected.
        share: above 0 and at most 1; DINO's videos use 0.6.

    Returns:
        bool (..., H, W), true for the selected cells. If cells have equal values, earlier cells are selected first.

    Raises:
        XCiTError: if `share` is out of range.
    """
    if not 0 < share <= 1:
        raise XCiTError(f"the share of the attention to keep is {share:g}, but must be above 0 and at most 1")
    cells = np.nan_to_num(maps.reshape(*maps.shape[:-2], -1).astype(np.float64))
    order = np.argsort(-cells, axis=-1, kind="stable")
    ranked = np.take_along_axis(cells, order, axis=-1)
    sums = ranked.cumsum(axis=-1)
    # A cell is needed if the sum of all cells with larger values is below the share.
    is_needed = np.roll(sums, 1, axis=-1) < share * sums[..., -1:]
    is_needed[..., 0] = ranked[..., 0] > 0
    kept = np.empty_like(is_needed)
    np.put_along_axis(kept, order, is_needed, axis=-1)
    return kept.reshape(maps.shape)


def at_image_size(
    maps: np.ndarray[Any, np.dtype[Kind]], size: tuple[int, ...], patch_size: int
) -> np.ndarray[Any, np.dtype[Kind]]:
    """Enlarges maps (..., H, W) to an image's size (..., h, w).

    Each pixel gets the value of the cell with the nearest centre. Because of the convolutions in the model's stem, the
    centre of cell (i, j) is the pixel (i * patch_size, j * patch_size). So this pixel is the centre of the cell's
    square, and not its top left corner.
    """
    rows, columns = (
        np.minimum((np.arange(num_pixels) + patch_size // 2) // patch_size, num_cells - 1)
        for num_pixels, num_cells in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]
