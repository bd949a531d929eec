"""Draws feature maps: the first three principal components of the features become red, green and blue."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_CELLS = 2**20


def component_picture(features: Any) -> NDArray[np.uint8]:
    """Returns a picture of the first three principal components of a feature map.

    Cells with a value that is not finite are white. If there are more than about a million cells (2^20), only every
    `step`-th row and column is used, with the smallest `step` that leaves at most 2^20 cells.

    Args:
        features: an array (H, W, D) that can be sliced: in memory, memory-mapped or Zarr.

    Returns:
        uint8 (ceil(H / step), ceil(W / step), 3).
    """
    height, width, _ = features.shape
    step = 1
    while -(-height // step) * -(-width // step) > _MOST_CELLS:
        step += 1
    rows = [np.asarray(features[row])[::step] for row in range(0, height, step)]
    cells = np.stack(rows).astype(np.float32)
    picture = np.full((*cells.shape[:2], 3), 255, np.uint8)
    kept = np.isfinite(cells).all(axis=2)
    numbers = cells[kept]
    if not len(numbers):
        return picture
    numbers -= numbers.mean(axis=0)
    _, vectors = np.linalg.eigh(numbers.T.astype(np.float64) @ numbers)
    vectors = vectors[:, ::-1][:, :3]
    # The sign of a component is arbitrary. It is chosen so that the entry with the largest absolute value is positive.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    parts = numbers @ vectors.astype(np.float32)
    low, high = np.percentile(parts, (1, 99), axis=0)
    shares = np.clip((parts - low) / np.maximum(high - low, 1e-12), 0, 1)
    colours = np.zeros((len(shares), 3))
    colours[:, : shares.shape[1]] = shares
    picture[kept] = np.rint(colours * 255).astype(np.uint8)
    return picture
