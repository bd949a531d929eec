"""Runs one image through the model a few rows at a time, with the same results as for the whole image.

The rows of an image depend on each other in two ways only: through the D x D sums over all tokens from which XCA
computes its attention, and through the neighbouring rows that the 3x3 convolutions read (the halo). So each block
needs one pass over the rows. While rows leave block l, the sums for block l + 1 are accumulated from them. Each
convolution keeps the last rows of its input until the next rows arrive.

This module does not know where the tokens are stored, in memory or elsewhere; see `Tokens`.

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
"""Number of rows that LPI waits for before its first output: each of its two convolutions needs the row below."""

Leave = Callable[[int, Tensor], None]
"""Takes the number of the first row, and rows (k, W, D)."""


class Tokens(Protocol):
    """The tokens (H, W, D) of one image. A pass reads and writes them from the first row to the last."""

    @property
    def height(self) -> int:
        """H."""

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows start..end, (end - start, W, D), on the device and in the dtype that the model computes with.

        The caller must not change them. They are valid until the next call.
        """

    def write(self, start: int, rows: Tensor) -> None:
        """Copies rows (k, W, D) to start..start + k. All of these rows have been read before."""


class TensorTokens:
    """Tokens in a tensor (H, W, D)."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def height(self) -> int:
        """H."""
        return self.tensor.shape[0]

    def read(self, start: int, end: int) -> Tensor:
        """Returns a view of rows start..end."""
        return self.tensor[start:end]

    def write(self, start: int, rows: Tensor) -> None:
        """Copies rows to start..start + k."""
        self.tensor[start : start + len(rows)] = rows


def spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of stripes of `size`; the last may be smaller."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype of sums over all stripes: float64, so that millions of float32 terms add up without loss.

    MPS has no float64, so there it is float32.
    """
    return torch.float32 if device.type == "mps" else torch.float64


class Sums:
    """The sums over all tokens that XCA needs: their Gram matrix (D, D), their sum (D,) and their number."""

    def __init__(self, gram: Tensor, total: Tensor, count: int = 0) -> None:
        self.gram, self.total, self.count = gram, total, count

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> "Sums":
        """Returns sums to which no token has been added."""
        dtype = sum_dtype(device)
        return cls(torch.zeros(dim, dim, dtype=dtype, device=device), torch.zeros(dim, dtype=dtype, device=device))

    def add(self, normed: Tensor) -> None:
        """Adds tokens (n, D), taken after the norm before XCA; the sums within a stripe are at least in float32."""
        gram, total = ops.gram(normed[None])
        self.gram += gram[0]
        self.total += total[0, 0]
        self.count += len(normed)


class SlidingConv:
    """A 3x3 convolution of an image whose rows arrive a few at a time. It keeps the halo of the next rows."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv, self._padding = conv, int(conv.padding[1])
        self._seen: Tensor | None = None  # (B, channels, rows, w), channels last: a buffer that all stripes use
        self._num_held = 1  # rows in the buffer that are still needed; at the start, the padding above the image

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """Takes the next input rows, and returns the output rows (B, channels, k, w) that they complete; k may be 0."""
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
        seen[:, :, : self._num_held] = seen[:, :, first:end].clone()  # source and destination may overlap
        return found

    def _room_for(self, rows: Tensor, num_rows: int) -> Tensor:
        """Returns the buffer, enlarged to at least `num_rows`, with the rows that it holds."""
        if self._seen is None or self._seen.shape[2] < num_rows:
            batch, channels, _, width = rows.shape
            seen = rows.new_empty(batch, num_rows, width, channels).permute(0, 3, 1, 2)
            seen[:, :, : self._num_held] = 0 if self._seen is None else self._seen[:, :, : self._num_held]
            self._seen = seen
        return self._seen


class SlidingStem:
    """The stem, with its norms folded, on an image whose rows arrive a few at a time."""

    def __init__(self, convs: nn.ModuleList) -> None:
        self._convs = [SlidingConv(conv) for conv in convs if isinstance(conv, nn.Conv2d)]

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """Takes the next rows of pixels (B, in_channels, r, w), and returns rows of patches (B, k, W, D)."""
        for index, conv in enumerate(self._convs):
            rows = conv.push(torch.ops.aten.gelu_(rows) if index else rows, is_last=is_last)
        return rows.permute(0, 2, 3, 1)


class SlidingLPI:
    """LPI of a fused block on normalised tokens, given a few rows at a time; its output is `ROWS_HELD` rows behind."""

    def __init__(self, block: "FusedXCABlock", kept: KeptTokens = ALL_TOKENS) -> None:
        self._block, self._kept = block, kept
        self._num_in = self._num_between = 0  # rows that each of the convolutions has received
        self._conv1, self._conv2 = SlidingConv(block.conv1), SlidingConv(block.conv2)

    def push(self, normed: Tensor, *, is_last: bool) -> Tensor:
        """Takes the next rows (r, W, D), and returns the rows (k, W, D) that they complete."""
        image = self._kept.clear_(self._num_in, normed[None].permute(0, 3, 1, 2))
        self._num_in += image.shape[2]
        image = self._conv1.push(image, is_last=is_last)
        image = torch.ops.aten.gelu_(image)
        # The norm can't be folded into the second convolution: that convolution pads the output of the norm with zeros.
        image.mul_(self._block.norm_scale).add_(self._block.norm_shift)
        self._kept.clear_(self._num_between, image)
        self._num_between += image.shape[2]
        return self._conv2.push(image, is_last=is_last)[0].permute(1, 2, 0)


def sums_of(tokens: Tokens, norm: nn.Module, rows_at_once: int) -> Sums:
    """Returns XCA's sums over the tokens, computed in a separate pass; `norm` is the norm before XCA.

    Only the first block needs this pass. For any other block, the pass of the previous block collects the sums.
    """
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
    """Applies an XCA block to an image, in one pass over its tokens.

    Args:
        block: the block.
        tokens: the tokens of the image.
        sums: the sums of the tokens after `block.norm_xca`.
        rows_at_once: rows of a stripe.
        leave: called with the output rows, in order. They are valid until it returns.
        following: the norm before XCA of the next block, if there is one.
        kept: the tokens that are not left out. `sums` and the returned sums include only these tokens.

    Returns:
        The sums of the output rows after `following`. If `following` is None, no token is added to the sums.
    """
    collected = Sums.empty(sums.total.shape[0], sums.total.device)
    matrix, row = block.mixing(sums)
    lpi = SlidingLPI(block, kept)
    work: Tensor | None = None  # buffer of rows after XCA, used for all stripes; rows that LPI holds come first
    num_held = num_done = 0
    for start, end in spans(tokens.height, rows_at_once):
        entering = tokens.read(start, end)
        if work is None:
            work = entering.new_empty(rows_at_once + ROWS_HELD, *entering.shape[1:])
        mixed = work[num_held : num_held + len(entering)]
        torch.add(entering, row, out=mixed)
        mixed += ops.linear(block.norm_xca(entering), matrix.mT)
        local = lpi.push(block.norm_lpi(mixed), is_last=end == tokens.height)
        rows, held = work[: len(local)], work[len(local) : num_held + len(entering)]
        rows += local
        block.add_mlp(rows.flatten(0, 1))
        if len(rows):
            leave(num_done, rows)
            if following is not None:
                collected.add(following(kept.of(num_done, rows)))
        num_done, num_held = num_done + len(rows), len(held)
        work[:num_held] = held.clone()  # source and destination may overlap
    return collected


class ClassAttentionSums:
    """Class attention over tokens that arrive in parts. One pass computes both the softmax and the weighted sum.

    The running sums are scaled to the largest score so far. Up to rounding, the result is that of a softmax over all
    tokens.
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
        """Adds tokens (B, n, D), taken after the norm before attention, and returns their scores (B, M, n)."""
        scores = (self._vectors @ normed.mT + self._offsets).to(self.largest.dtype)
        largest = torch.maximum(self.largest, scores.amax(dim=2, keepdim=True))
        weights = (scores - largest).exp()
        shrinking = (self.largest - largest).exp().to(self._wide)
        self.total = self.total * shrinking + weights.sum(dim=2, keepdim=True).to(self._wide)
        self.mixed = self.mixed * shrinking + (weights.to(normed.dtype) @ normed).to(self._wide)
        self.largest = largest
        return scores

    def shares(self, scores: Tensor) -> Tensor:
        """Returns the attention weights of scores (B, M, n), after all tokens have been added."""
        return (scores - self.largest).exp() / self.total.to(scores.dtype)

    def value(self) -> Tensor:
        """Returns the output of the attention (B, D), after all tokens have been added."""
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
    """Applies a class attention block to an image, in one pass over its tokens.

    The class token after the block is then `block.finish(cls, attention.value())`.

    Args:
        block: the block.
        attention: contains the class token; the tokens are added to it.
        tokens: the tokens of the image.
        rows_at_once: rows of a stripe.
        leave: called with the output rows; None if they are not needed.
        hear: called for each stripe, with the scores (1, M, n) of its tokens that count; n is k * W if all count.
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
