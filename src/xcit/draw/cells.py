"""Maps on a grid of cells: as masks of their largest cells, and at the size of the image that the grid lies on."""

from typing import Any, TypeVar

import numpy as np

from xcit.errors import XCiTError

Cells = np.ndarray[Any, np.dtype[np.float32]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Kind = TypeVar("Kind", bound=np.generic)


def largest_cells(maps: Cells, share: float) -> Mask:
    """The smallest set of cells of each map that holds `share` of the map's sum, as in DINO's pictures.

    Args:
        maps: (..., H, W), none negative; NaN is never in the set.
        share: above 0, at most 1; DINO's videos were made with 0.6.

    Returns:
        (..., H, W), true in the set. Of equal cells the first count as larger.

    Raises:
        XCiTError: if `share` is out of range.
    """
    if not 0 < share <= 1:
        raise XCiTError(f"the share of the attention to keep is {share:g}, must be above 0 and at most 1")
    cells = np.nan_to_num(maps.reshape(*maps.shape[:-2], -1).astype(np.float64))
    order = np.argsort(-cells, axis=-1, kind="stable")
    ranked = np.take_along_axis(cells, order, axis=-1)
    sums = ranked.cumsum(axis=-1)
    # A cell is needed where those before it do not suffice.
    is_needed = np.roll(sums, 1, axis=-1) < share * sums[..., -1:]
    is_needed[..., 0] = ranked[..., 0] > 0
    kept = np.empty_like(is_needed)
    np.put_along_axis(kept, order, is_needed, axis=-1)
    return kept.reshape(maps.shape)


def at_image_size(
    maps: np.ndarray[Any, np.dtype[Kind]], size: tuple[int, ...], patch_size: int
) -> np.ndarray[Any, np.dtype[Kind]]:
    """Maps (..., H, W) at an image's size (h, w), as (..., h, w): each pixel takes the cell with the nearest centre.

    The stem's convolutions centre cell (i, j) on the pixel (i * patch_size, j * patch_size), so its square lies around
    that place, not right of it and below.
    """
    rows, columns = (
        np.minimum((np.arange(num_pixels) + patch_size // 2) // patch_size, num_cells - 1)
        for num_pixels, num_cells in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]
