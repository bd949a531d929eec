"""Which tokens of an image count, if a mask leaves out some of them.

A token that is left out takes part in no sum. LPI treats it like the area beyond the edge of the image: both of its
convolutions read zeros there. The values of such a token are computed like all others, and have no meaning.
"""

from torch import Tensor


class KeptTokens:
    """Which tokens of a grid count.

    Args:
        keep: bool (H, W), on the device of the tokens; None if all tokens count.
    """

    def __init__(self, keep: Tensor | None) -> None:
        self.keep = keep

    def of(self, start: int, rows: Tensor) -> Tensor:
        """Returns the tokens (n, D) that count among rows (k, W, D); `start` is the number of the first row."""
        flat = rows.flatten(0, 1)
        return flat if self.keep is None else flat[self.keep[start : start + len(rows)].flatten()]

    def filled(self, start: int, rows: Tensor, value: float) -> Tensor:
        """Returns rows (k, W, D) with `value` in the tokens that are left out; a copy, unless all tokens count."""
        return rows if self.keep is None else rows.masked_fill(~self.keep[start : start + len(rows), :, None], value)

    def clear_(self, start: int, maps: Tensor) -> Tensor:
        """Sets the tokens that are left out to zero, in place, in rows (1, D, k, W) of a map; returns the rows."""
        if self.keep is not None:
            maps.masked_fill_(~self.keep[start : start + maps.shape[2]], 0)
        return maps


ALL_TOKENS = KeptTokens(None)
