"""Passes the output rows of a block to the next block and to a map, and includes them in a mean over the tokens."""

import torch
from torch import Tensor, nn

from xcit.models.kept_tokens import ALL_TOKENS, KeptTokens
from xcit.models.stripes import Leave, sum_dtype
from xcit.streaming.outputs import TokenMap, as_map_rows


class Leaving:
    """A callable that receives the output rows (k, W, D) of a block, in order, and passes them on.

    Args:
        write: function that stores the rows as input of the next block; None if no block follows.
        norm: norm that is applied before the map and the mean; None if the model has no final norm, or if another
            block follows.
        map_: destination of the rows after the norm; None if no map is requested.
        mean: whether the mean of the tokens after the norm is computed.
        kept: the tokens that are not masked out. Only these tokens are included in the mean.
        left_out: value of masked-out tokens in the map.
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
        """Whether the rows are used by a block, a map or a mean."""
        return self._write is not None or self._map is not None or self._wants_mean

    def __call__(self, start: int, rows: Tensor) -> None:
        """Receives rows (k, W, D). `start` is the index of the first row."""
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
        """Returns the mean (D,) of all tokens that are not masked out; None if no mean was requested."""
        return None if self._total is None else self._total / self._count
