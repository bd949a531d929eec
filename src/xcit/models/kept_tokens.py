"""Masks that leave out some tokens of an image. The other tokens are called kept tokens.

The sums over tokens, in XCA and class attention, contain only kept tokens. In LPI (local patch interaction), both
convolutions read zeros at the tokens that are left out, as they do outside the image. Values are also computed for the
tokens that are left out, but the caller must ignore these values.
"""

from torch import Tensor


class KeptTokens:
    """The kept tokens of an H x W token grid.

    Args:
        keep: bool (H, W), true for kept tokens, on the device of the tokens; None means that all tokens are kept.
    """

    def __init__(self, keep: Tensor | None) -> None:
        self.keep = keep

    def of(self, start: int, rows: Tensor) -> Tensor:
        """Returns the kept tokens (n, D) of the rows (k, W, D). `start` is the index of the first row in the grid."""
        flat = rows.flatten(0, 1)
        return flat if self.keep is None else flat[self.keep[start : start + len(rows)].flatten()]

    def filled(self, start: int, rows: Tensor, value: float) -> Tensor:
        """Returns rows (k, W, D) with all values of the left-out tokens replaced by `value`.

        The result is a copy, unless `keep` is None. `start` is the index of the first row in the grid.
        """
        return rows if self.keep is None else rows.masked_fill(~self.keep[start : start + len(rows), :, None], value)

    def clear_(self, start: int, maps: Tensor) -> Tensor:
        """Sets all values of the left-out tokens to zero in place, and returns `maps`.

        Args:
            start: index of the first row in the grid.
            maps: k rows of the grid in the layout of an image, (1, D, k, W).
        """
        if self.keep is not None:
            maps.masked_fill_(~self.keep[start : start + maps.shape[2]], 0)
        return maps


ALL_TOKENS = KeptTokens(None)
