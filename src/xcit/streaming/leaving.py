"""Distributes the rows that leave a block: to the tokens, to a map, and to a mean."""

import torch
from torch import Tensor, nn

from xcit.models.kept_tokens import ALL_TOKENS, KeptTokens
from xcit.models.stripes import Leave, sum_dtype
from xcit.streaming.outputs import TokenMap, as_map_rows


class Leaving:
    """Called with the rows (k, W, D) that leave a block, in order.

    Args:
        write: writes the rows to the tokens; None if no block follows.
        norm: applied before maps and means; None if the model has no final norm, or if blocks follow.
        map_: the destination of the rows after the norm, or None.
        mean: whether the mean of the rows after the norm is wanted.
        kept: the tokens that count; the others are left out of the mean.
        left_out: value of the other tokens in the map.
    """

    def __init__(
        self,
        write: Leave | None,
        norm: nn.Module | None,
        map_: TokenMap | None,
        *,
        mean: bool,
        kept: KeptTokens = ALL_TOKENS,
        left_out: float = torch.nan,
    ) -> None:
        self._left_out = left_out
        self._write, self._norm, self._map, self._wants_mean, self._kept = write, norm, map_, mean, kept
        self._total: Tensor | None = None
        self._count = 0

    @property
    def is_heard(self) -> bool:
        """Whether anything uses the rows."""
        return self._write is not None or self._map is not None or self._wants_mean

    def __call__(self, start: int, rows: Tensor) -> None:
        """Takes rows, the first of which is row `start`."""
        if self._write is not None:
            self._write(start, rows)
        if self._map is None and not self._wants_mean:
            return
        rows = rows if self._norm is None else self._norm(rows)
        if self._map is not None:
            self._map.write(start, as_map_rows(self._kept.filled(start, rows, self._left_out)))
        if self._wants_mean:
            counting = self._kept.of(start, rows)
            wide = counting.to(torch.promote_types(rows.dtype, torch.float32)).sum(dim=0)
            wide = wide.to(sum_dtype(rows.device))
            self._total = wide if self._total is None else self._total + wide
            self._count += len(counting)

    def mean(self) -> Tensor | None:
        """Returns the mean (D,) of all rows; None if it was not requested."""
        return None if self._total is None else self._total / self._count
