"""Which part of an image is read, and how its values are interpreted."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.images.rows import RowsInfo

NEAR = 0.03
"""The relative tolerance of a pixel's size: a scanner may write 0.2527 micrometres for 0.25."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of an image is read; by default all of it, as stored in the file.

    Attributes:
        level: level of a pyramid, 0 for the largest.
        mpp: micrometres per pixel, instead of a level. The coarsest level that is fine enough is used. If its pixels
            are smaller by a whole factor, each pixel of the result is the mean of a square of them.
        bands: channels, counted from 1, in the model's order; if empty, all channels except transparency.
        value_range: the values that become 0 and 1; others are clipped.
        region: x, y, width and height in pixels of the level (or of `mpp`).
        mask: an image file or an array (H, W), of the size of the level or of another size; pixels above 0 count.
        ignore_exif: read JPEG, PNG and similar files as they are stored, whatever the EXIF orientation.
    """

    level: int | None = None
    mpp: float | None = None
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    region: tuple[int, int, int, int] | None = None
    mask: str | os.PathLike[str] | np.ndarray[Any, np.dtype[Any]] | None = None
    ignore_exif: bool = False

    def __post_init__(self) -> None:
        if self.level is not None and self.mpp is not None:
            raise XCiTError("give a level, or micrometres per pixel (mpp), not both")
        if self.mpp is not None and not self.mpp > 0:
            raise XCiTError(f"mpp is {self.mpp}, must be above 0")
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise XCiTError(f"bands are {self.bands}: name at least one; they are counted from 1")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and -np.inf < self.value_range[0] < self.value_range[1] < np.inf
        ):
            raise XCiTError(f"the range is {self.value_range}, must be two numbers, the lower one first")
        if self.region is not None and (len(self.region) != 4 or min(self.region[:2]) < 0 or min(self.region[2:]) < 1):
            raise XCiTError(f"the region is {self.region}, must be x, y, width and height in pixels")


ALL = Selection()
"""An image as stored in its file."""


def level_of(info: RowsInfo, mpp: float) -> tuple[int, int]:
    """Returns the level and the factor by which it is reduced, for pixels of `mpp` micrometres.

    It is the coarsest level whose pixel size, times a whole number (the factor), is `mpp`.

    Raises:
        XCiTError: if the file has no pixel size, or no level has such a pixel size.
    """
    finest = info.metadata.get("mpp")
    if finest is None:
        raise XCiTError(f"{info.name}: the file does not say how large its pixels are: give a level in place of mpp")
    levels = info.levels or ((1, 1),)
    sizes = [finest * levels[0][0] / height for height, _ in levels]
    for level in reversed(range(len(sizes))):
        factor = round(mpp / sizes[level])
        if factor >= 1 and abs(factor * sizes[level] / mpp - 1) <= NEAR:
            return level, factor
    raise XCiTError(
        f"{info.name}: no level gives {mpp:g} micrometres per pixel; there are "
        f"{', '.join(f'{size:.4g}' for size in sizes)} and whole multiples of them"
    )
