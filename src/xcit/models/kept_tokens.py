"""The tokens of an image that count, where a mask leaves others out.

Those that are left out take no part in any sum. To LPI they are what lies beyond the edge of the image: both of its
convolutions see zeros there. Their own numbers are computed like all others and mean nothing.
"""

from torch import Tensor


class KeptTokens:
    """Which tokens of a grid count.

    Args:
        keep: bool (H, W), on the device of the tokens; none if all count.
    """

    def __init__(self, keep: Tensor | None) -> None:
        self.keep = keep

    def of(self, start: int, rows: Tensor) -> Tensor:
        """Of rows (k, W, D), of which `start` is the number of the first, those that count, (n, D)."""
        flat = rows.flatten(0, 1)
        return flat if self.keep is None else flat[self.keep[start : start + len(rows)].flatten()]

    def filled(self, start: int, rows: Tensor, value: float) -> Tensor:
        """Rows (k, W, D) with this value in the tokens that are left out; new ones, if any may be."""
        return rows if self.keep is None else rows.masked_fill(~self.keep[start : start + len(rows), :, None], value)

    def clear_(self, start: int, maps: Tensor) -> Tensor:
        """Rows (1, D, k, W) of a map with zeros in what is left out, where they lie."""
        if self.keep is not None:
            maps.masked_fill_(~self.keep[start : start + maps.shape[2]], 0)
        return maps


ALL_TOKENS = KeptTokens(None)
