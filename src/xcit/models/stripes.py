"""One image through the model a few rows at a time, with the numbers of the whole image.

Between the rows of an image there are two dependencies only: the D x D sums over all tokens that XCA's attention is
made of, and the neighbouring rows of the 3x3 convolutions. So a block is one pass over the rows. While rows leave block
l, the sums for block l + 1 are taken from them; each convolution keeps the last rows that it saw until the next come.

Where the tokens lie, in memory or elsewhere, is not known here: see `Tokens`.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops
from xcit.models.kept_tokens import ALL_TOKENS, KeptTokens

if TYPE_CHECKING:
    from xcit.models.fused import FusedClassAttentionBlock, FusedXCABlock

ROWS_HELD = 2
"""Rows of LPI's input that wait for the rows below them: one for each of its convolutions."""

Leave = Callable[[int, Tensor], None]
"""Takes the number of the first row, and rows (k, W, D)."""


class Tokens(Protocol):
    """The tokens (H, W, D) of one image, which passes read and write from the first row to the last."""

    @property
    def height(self) -> int:
        """H."""

    def read(self, start: int, end: int) -> Tensor:
        """Rows start..end, (end - start, W, D), where and in which precision the model computes.

        They must not be changed, and hold until the next call.
        """

    def write(self, start: int, rows: Tensor) -> None:
        """Puts rows (k, W, D) in the place of start..start + k, all of which have been read; copies them."""


class TensorTokens:
    """Tokens that are a tensor (H, W, D)."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def height(self) -> int:
        """H."""
        return self.tensor.shape[0]

    def read(self, start: int, end: int) -> Tensor:
        """A view."""
        return self.tensor[start:end]

    def write(self, start: int, rows: Tensor) -> None:
        """Copies."""
        self.tensor[start : start + len(rows)] = rows


def spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of stripes of `size`, of which the last may be smaller."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


def sum_dtype(device: torch.device) -> torch.dtype:
    """The precision of sums over all stripes: float64, of which even millions of float32 terms lose nothing."""
    return torch.float32 if device.type == "mps" else torch.float64


class Sums:
    """What XCA needs to know of all tokens: their Gram matrix (D, D), their sum (D,) and their number."""

    def __init__(self, gram: Tensor, total: Tensor, count: int = 0) -> None:
        self.gram, self.total, self.count = gram, total, count

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> "Sums":
        """The sums of no tokens."""
        dtype = sum_dtype(device)
        return cls(torch.zeros(dim, dim, dtype=dtype, device=device), torch.zeros(dim, dtype=dtype, device=device))

    def add(self, normed: Tensor) -> None:
        """Takes tokens (n, D) in, after the norm before XCA; a stripe's own sums are in float32 at least."""
        gram, total = ops.gram(normed[None])
        self.gram += gram[0]
        self.total += total[0, 0]
        self.count += len(normed)


class SlidingConv:
    """A 3x3 convolution of an image whose rows come in turns; it keeps those that the next ones are seen with."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv, self._padding = conv, int(conv.padding[1])
        self._seen: Tensor | None = None  # (B, channels, rows, w), channels last: room for a stripe, used again
        self._num_held = 1  # rows in it that wait for others: the padding above the image

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """The rows (B, channels, k, w) that can be computed from the next ones of the input, maybe none."""
        conv, size, stride, padding = self._conv, self._conv.kernel_size[0], self._conv.stride[0], self._padding
        end = self._num_held + rows.shape[2]
        seen = self._room_for(rows, end + 1)
        seen[:, :, self._num_held : end] = rows
        if is_last:
            seen[:, :, end] = 0
            end += 1
        num_rows = max(0, (end - size) // stride + 1)
        if num_rows:
            found = F.conv2d(seen[:, :, :end], conv.weight, conv.bias, conv.stride, (0, padding), groups=conv.groups)
        else:
            width = (rows.shape[3] + 2 * padding - size) // conv.stride[1] + 1
            found = rows.new_empty(rows.shape[0], conv.out_channels, 0, width)
        first = num_rows * stride
        self._num_held = end - first
        seen[:, :, : self._num_held] = seen[:, :, first:end].clone()  # they may overlap
        return found

    def _room_for(self, rows: Tensor, num_rows: int) -> Tensor:
        """The buffer with room for so many rows, and those that were held in it."""
        if self._seen is None or self._seen.shape[2] < num_rows:
            batch, channels, _, width = rows.shape
            seen = rows.new_empty(batch, num_rows, width, channels).permute(0, 3, 1, 2)
            seen[:, :, : self._num_held] = 0 if self._seen is None else self._seen[:, :, : self._num_held]
            self._seen = seen
        return self._seen


class SlidingStem:
    """The stem, its norms folded, on an image whose rows come in turns."""

    def __init__(self, convs: nn.ModuleList) -> None:
        self._convs = [SlidingConv(conv) for conv in convs if isinstance(conv, nn.Conv2d)]

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """Rows of patches (B, k, W, D) from the next rows of pixels (B, in_channels, r, w)."""
        for index, conv in enumerate(self._convs):
            rows = conv.push(torch.ops.aten.gelu_(rows) if index else rows, is_last=is_last)
        return rows.permute(0, 2, 3, 1)


class SlidingLPI:
    """LPI of a fused block on normed tokens whose rows come in turns; what comes out is `ROWS_HELD` rows behind."""

    def __init__(self, block: "FusedXCABlock", kept: KeptTokens = ALL_TOKENS) -> None:
        self._block, self._kept = block, kept
        self._num_in = self._num_between = 0  # rows that each convolution has been given
        self._conv1, self._conv2 = SlidingConv(block.conv1), SlidingConv(block.conv2)

    def push(self, normed: Tensor, *, is_last: bool) -> Tensor:
        """Rows (k, W, D) from the next rows (r, W, D)."""
        image = self._kept.clear_(self._num_in, normed[None].permute(0, 3, 1, 2))
        self._num_in += image.shape[2]
        image = self._conv1.push(image, is_last=is_last)
        image = torch.ops.aten.gelu_(image)
        # Not part of the second convolution: that one pads what comes out of the norm.
        image.mul_(self._block.norm_scale).add_(self._block.norm_shift)
        self._kept.clear_(self._num_between, image)
        self._num_between += image.shape[2]
        return self._conv2.push(image, is_last=is_last)[0].permute(1, 2, 0)


def sums_of(tokens: Tokens, norm: nn.Module, rows_at_once: int) -> Sums:
    """XCA's sums over tokens that no pass has gone over, by a pass of its own; `norm` is the one before XCA."""
    sums: Sums | None = None
    for start, end in spans(tokens.height, rows_at_once):
        normed = norm(tokens.read(start, end)).flatten(0, 1)
        sums = Sums.empty(normed.shape[1], normed.device) if sums is None else sums
        sums.add(normed)
    assert sums is not None
    return sums


def pass_xca_block(
    block: "FusedXCABlock",
    tokens: Tokens,
    sums: Sums,
    rows_at_once: int,
    leave: Leave,
    following: nn.Module | None = None,
    kept: KeptTokens = ALL_TOKENS,
) -> Sums:
    """A block on an image: one pass over its tokens.

    Args:
        block: the block.
        tokens: of the image.
        sums: of the tokens after `block.norm_xca`.
        rows_at_once: rows of a stripe.
        leave: called with the rows that come out, in their order; they hold until it returns.
        following: the norm before XCA of the next block, if there is one.
        kept: the tokens that count; `sums` are of them alone, as those that come out are.

    Returns:
        The sums of the rows that came out, after `following`; those of no tokens without it.
    """
    collected = Sums.empty(sums.total.shape[0], sums.total.device)
    matrix, row = block.mixing(sums)
    lpi = SlidingLPI(block, kept)
    work: Tensor | None = None  # one for all stripes: the rows after XCA, those first that LPI has not come to
    num_held = num_done = 0
    for start, end in spans(tokens.height, rows_at_once):
        entering = tokens.read(start, end)
        if work is None:
            work = entering.new_empty(rows_at_once + ROWS_HELD, *entering.shape[1:])
        mixed = work[num_held : num_held + len(entering)]
        torch.add(entering, row, out=mixed)
        mixed.flatten(0, 1).addmm_(block.norm_xca(entering).flatten(0, 1), matrix)
        local = lpi.push(block.norm_lpi(mixed), is_last=end == tokens.height)
        rows, held = work[: len(local)], work[len(local) : num_held + len(entering)]
        rows += local
        block.add_mlp(rows.flatten(0, 1))
        if len(rows):
            leave(num_done, rows)
            if following is not None:
                collected.add(following(kept.of(num_done, rows)))
        num_done, num_held = num_done + len(rows), len(held)
        work[:num_held] = held.clone()  # they may overlap
    return collected


class ClassAttentionSums:
    """Class attention over tokens that come in turns: softmax and weighted sum at once, scaled to the largest so far.

    Its outputs are those of the softmax over all tokens, to rounding.
    """

    def __init__(self, block: "FusedClassAttentionBlock", cls: Tensor) -> None:
        self._attn = attn = block.attn
        normed = block.norm_attn(cls)
        self._wide = sum_dtype(cls.device)
        self._vectors, self._offsets = ops.class_query(attn.q(normed[:, 0]), attn.k.weight, attn.k.bias, attn.num_heads)
        single = torch.promote_types(cls.dtype, torch.float32)
        self.largest = torch.full(
            (*self._vectors.shape[:2], 1), -torch.inf, dtype=single, device=cls.device
        )  # (B, M, 1)
        self.total = torch.zeros_like(self.largest, dtype=self._wide)  # (B, M, 1)
        self.mixed = torch.zeros_like(self._vectors, dtype=self._wide)  # (B, M, D)
        self.class_scores = self.add(normed)

    def add(self, normed: Tensor) -> Tensor:
        """Takes tokens (B, n, D) in, after the norm before attention; gives their scores (B, M, n), wide."""
        scores = (self._vectors @ normed.mT + self._offsets).to(self.largest.dtype)
        largest = torch.maximum(self.largest, scores.amax(dim=2, keepdim=True))
        weights = (scores - largest).exp()
        shrinking = (self.largest - largest).exp().to(self._wide)
        self.total = self.total * shrinking + weights.sum(dim=2, keepdim=True).to(self._wide)
        self.mixed = self.mixed * shrinking + (weights.to(normed.dtype) @ normed).to(self._wide)
        self.largest = largest
        return scores

    def shares(self, scores: Tensor) -> Tensor:
        """Scores (B, M, n) as shares of the attention, once all tokens are in."""
        return (scores - self.largest).exp() / self.total.to(scores.dtype)

    def value(self) -> Tensor:
        """The value (B, D) that the class token attends to, once all tokens are in."""
        attn, mixed = self._attn, (self.mixed / self.total).to(self._vectors.dtype)
        return ops.class_value(mixed, attn.v.weight, attn.v.bias)


def pass_class_block(
    block: "FusedClassAttentionBlock",
    attention: ClassAttentionSums,
    tokens: Tokens,
    rows_at_once: int,
    *,
    leave: Leave | None = None,
    hear: Leave | None = None,
    kept: KeptTokens = ALL_TOKENS,
) -> None:
    """A class attention block on an image: one pass over its tokens.

    The class token is `block.finish(cls, attention.value())` then.

    Args:
        block: the block.
        attention: with the class token in it, to which the tokens are added.
        tokens: of the image.
        rows_at_once: rows of a stripe.
        leave: called with the rows that come out; none where nobody wants them.
        hear: called with the scores (1, M, n) of those of the same rows that count, k * W if all do.
        kept: the tokens that count.
    """
    for start, end in spans(tokens.height, rows_at_once):
        entering = tokens.read(start, end)
        normed = block.norm_attn(entering)
        counting = kept.of(start, normed)
        scores = attention.add(counting[None]) if len(counting) else attention.class_scores[:, :, :0]
        if hear is not None:
            hear(start, scores)
        if leave is not None:
            leave(start, block.moved(entering, normed))
