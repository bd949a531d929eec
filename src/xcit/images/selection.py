"""Defines which part of an image is read, and how its values are interpreted."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcit.errors import XCiTError
from xcit.images.rows import RowsInfo

NEAR = 0.03
"""Relative tolerance for comparing pixel sizes, because a scanner may store 0.2527 micrometres instead of 0.25."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of an image that is read. By default, the whole image is read without any change.

    Attributes:
        level: index of the pyramid level to read; 0 is the largest. None means 0, or the level that `mpp` selects.
        mpp: requested pixel size, in micrometres per pixel. It selects a level: the coarsest level with a pixel size
            that is `mpp` divided by a whole number. If the whole number is not 1, each pixel that is read is the
            mean of a square of pixels of the level.
        bands: channels to read, counted from 1, in the order of the model's channels. None means all channels that the
            reader of the file returns.
        value_range: the two values that are scaled to 0 and 1; values outside this range are clipped.
        region: x, y, width and height of a rectangle to read, in pixels of the selected level, or in pixels of size
            `mpp` if `mpp` is given.
        mask: an image file or an array (H, W). It is scaled to the size of the image that is read. Pixels are ignored
            where the mask is 0.
        ignore_exif: if true, the EXIF orientation of JPEG, PNG and similar files is ignored.
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
            raise XCiTError(f"mpp is {self.mpp}, but must be above 0")
        if self.bands is not None and (not self.bands or min(self.bands) < 1):
            raise XCiTError(f"bands are {self.bands}: give at least one band, counted from 1")
        if self.value_range is not None and not (
            len(self.value_range) == 2 and -np.inf < self.value_range[0] < self.value_range[1] < np.inf
        ):
            raise XCiTError(f"the range is {self.value_range}, but must be two numbers, the lower one first")
        if self.region is not None and (len(self.region) != 4 or min(self.region[:2]) < 0 or min(self.region[2:]) < 1):
            raise XCiTError(f"the region is {self.region}, but must be x, y, width and height in pixels")


ALL = Selection()
"""The default selection: the whole image, without any change."""


def level_of(info: RowsInfo, mpp: float) -> tuple[int, int]:
    """Returns a level, and the factor by which the level must be reduced, to get pixels of `mpp` micrometres.

    The level is the coarsest level with a pixel size that gives `mpp` when multiplied by a whole number. The factor is
    this whole number.

    Raises:
        XCiTError: if the file does not contain the pixel size, or if no level gives `mpp`.
    """
    finest = info.metadata.get("mpp")
    if finest is None:
        raise XCiTError(f"{info.name}: the file does not say how large its pixels are: give a level instead of mpp")
    levels = info.levels or ((1, 1),)
    sizes = [finest * levels[0][0] / height for height, _ in levels]
    for level in reversed(range(len(sizes))):
        factor = round(mpp / sizes[level])
        if factor >= 1 and abs(factor * sizes[level] / mpp - 1) <= NEAR:
            return level, factor
    raise XCiTError(
        f"{info.name}: no level gives {mpp:g} micrometres per pixel; possible pixel sizes are "
        f"{', '.join(f'{size:.4g}' for size in sizes)} and whole multiples of these sizes"
    )
