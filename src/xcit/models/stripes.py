"""Runs one image through the model a few rows at a time. Up to rounding, the results equal those of one forward pass.

A stripe is a group of rows that are processed at once. In the stem and the XCA blocks, the rows of an image depend on
each other in only two ways. First, XCA computes its attention from D x D sums over all tokens. Second, the 3x3
convolutions read neighbouring rows (the halo). So each block needs one pass over the rows. When block l outputs rows,
these rows are added to the sums for block l + 1. Each convolution keeps the last rows of its input until the next rows
arrive.

The tokens may be in memory or elsewhere, for example in a file: see `Tokens`.

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
"""Number of rows by which LPI's output is behind its input: LPI's two convolutions each need one more row below."""

Leave = Callable[[int, Tensor], None]
"""A function that is called for a stripe with two arguments: the index of its first row, and its rows (k, W, D)."""


class Tokens(Protocol):
    """Interface of the tokens (H, W, D) of one image. They are read and written from the first row to the last."""

    @property
    def height(self) -> int:
        """Number of rows H."""

    def read(self, start: int, end: int) -> Tensor:
        """Returns the rows from `start` to `end` (exclusive), (end - start, W, D).

        The rows have the device and the dtype of the model. The caller must not change them. They are valid until the
        next call of `read`.
        """

    def write(self, start: int, rows: Tensor) -> None:
        """Replaces the k rows from `start` on with `rows` (k, W, D). The caller must have read these rows before."""


class TensorTokens:
    """Tokens that are a tensor (H, W, D) in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def height(self) -> int:
        """Number of rows H."""
        return self.tensor.shape[0]

    def read(self, start: int, end: int) -> Tensor:
        """Returns a view of the rows from `start` to `end` (exclusive)."""
        return self.tensor[start:end]

    def write(self, start: int, rows: Tensor) -> None:
        """Replaces the k rows from `start` on with `rows` (k, W, D)."""
        self.tensor[start : start + len(rows)] = rows


def spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of each stripe of `size` rows in `length` rows. The last stripe may be smaller."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Returns the dtype for sums over all tokens of an image: float64, or float32 on MPS, which has no float64.

    In float32, a sum of millions of terms would lose precision.
    """
    return torch.float32 if device.type == "mps" else torch.float64


class Sums:
    """The sums over tokens that XCA needs: Gram matrix (D, D), sum of the tokens (D,) and number of tokens."""

    def __init__(self, gram: Tensor, total: Tensor, count: int = 0) -> None:
        self.gram, self.total, self.count = gram, total, count

    @classmethod
    def empty(cls, dim: int, device: torch.device) -> "Sums":
        """Returns the sums over zero tokens."""
        dtype = sum_dtype(device)
        return cls(torch.zeros(dim, dim, dtype=dtype, device=device), torch.zeros(dim, dtype=dtype, device=device))

    def add(self, normed: Tensor) -> None:
        """Adds tokens (n, D), which are outputs of the norm before XCA, to the sums.

        The sums over these n tokens are computed in float32 or float64, even if the tokens have 16 bits.
        """
        gram, total = ops.gram(normed[None])
        self.gram += gram[0]
        self.total += total[0, 0]
        self.count += len(normed)


class SlidingConv:
    """A 3x3 convolution for images that arrive a few rows at a time.

    It stores the last input rows, because the next output rows need them too.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv, self._padding = conv, int(conv.padding[1])
        # The buffer for input rows (B, channels, rows, w), with channels last. It is used again for each stripe.
        self._seen: Tensor | None = None
        self._num_held = 1  # number of buffered rows that are still needed; at the start, the padding above the image

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """Accepts the next input rows and returns the output rows that can be computed now.

        Args:
            rows: (B, in_channels, r, w), the next r rows.
            is_last: whether `rows` are the last rows of the image.

        Returns:
            (B, out_channels, k, new width); k may be 0.
        """
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
        """Returns the buffer, enlarged to at least `num_rows` rows. The rows that are still needed stay in it."""
        if self._seen is None or self._seen.shape[2] < num_rows:
            batch, channels, _, width = rows.shape
            seen = rows.new_empty(batch, num_rows, width, channels).permute(0, 3, 1, 2)
            seen[:, :, : self._num_held] = 0 if self._seen is None else self._seen[:, :, : self._num_held]
            self._seen = seen
        return self._seen


class SlidingStem:
    """The stem, with folded batch norms, for images that arrive a few rows at a time."""

    def __init__(self, convs: nn.ModuleList) -> None:
        self._convs = [SlidingConv(conv) for conv in convs if isinstance(conv, nn.Conv2d)]

    def push(self, rows: Tensor, *, is_last: bool) -> Tensor:
        """Accepts the next rows of pixels (B, in_channels, r, w) and returns finished rows of tokens (B, k, W, D).

        k may be 0. `is_last` tells whether the new rows are the last rows of the images.
        """
        for index, conv in enumerate(self._convs):
            rows = conv.push(torch.ops.aten.gelu_(rows) if index else rows, is_last=is_last)
        return rows.permute(0, 2, 3, 1)


class SlidingLPI:
    """LPI (local patch interaction) of a fused block, for normalised tokens that arrive a few rows at a time.

    The output is `ROWS_HELD` rows behind the input.
    """

    def __init__(self, block: "FusedXCABlock", kept: KeptTokens = ALL_TOKENS) -> None:
        self._block, self._kept = block, kept
        self._num_in = self._num_between = 0  # numbers of rows that the two convolutions have received
        self._conv1, self._conv2 = SlidingConv(block.conv1), SlidingConv(block.conv2)

    def push(self, normed: Tensor, *, is_last: bool) -> Tensor:
        """Accepts the next rows (r, W, D) and returns finished rows (k, W, D).

        k may be 0. `is_last` tells whether the new rows are the last rows of the image.
        """
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
    """Computes the sums over all tokens that XCA needs, in a separate pass over the tokens.

    Only the first block needs this pass. For any other block, the sums are computed in the pass of the previous block.

    Args:
        tokens: the tokens of the image.
        norm: the block's norm before XCA.
        rows_at_once: number of rows of a stripe.
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
        sums: the sums over the outputs of `block.norm_xca` for all tokens.
        rows_at_once: number of rows of a stripe.
        leave: called with the index of the first output row and the output rows, from top to bottom. The rows are valid
            only during the call.
        following: the norm before XCA in the next block; None if there is no next block.
        kept: the kept tokens of the image (see `KeptTokens`). All sums contain only these tokens.

    Returns:
        The sums over the outputs of `following` for all output tokens; empty sums if `following` is None.
    """
    collected = Sums.empty(sums.total.shape[0], sums.total.device)
    matrix, row = block.mixing(sums)
    lpi = SlidingLPI(block, kept)
    # The buffer for rows after XCA. It is used again for each stripe. It begins with the rows of earlier stripes for
    # which LPI has not computed the output yet.
    work: Tensor | None = None
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

    The running sums are relative to the largest score so far. When a larger score arrives, the sums are rescaled. Up to
    rounding, the result is that of a softmax over all tokens.
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
        """Adds tokens (B, n, D), which are outputs of the norm before the attention.

        Returns:
            The scores of these tokens before the softmax, (B, M, n).
        """
        scores = (self._vectors @ normed.mT + self._offsets).to(self.largest.dtype)
        largest = torch.maximum(self.largest, scores.amax(dim=2, keepdim=True))
        weights = (scores - largest).exp()
        shrinking = (self.largest - largest).exp().to(self._wide)
        self.total = self.total * shrinking + weights.sum(dim=2, keepdim=True).to(self._wide)
        self.mixed = self.mixed * shrinking + (weights.to(normed.dtype) @ normed).to(self._wide)
        self.largest = largest
        return scores

    def shares(self, scores: Tensor) -> Tensor:
        """Converts scores (B, M, n) to attention weights. All tokens must have been added before."""
        return (scores - self.largest).exp() / self.total.to(scores.dtype)

    def value(self) -> Tensor:
        """Returns the output of the attention (B, D), before its projection. All tokens must have been added before."""
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
        attention: the sums of the attention, which contain only the class token. This function adds the kept patch
            tokens.
        tokens: the patch tokens of the image.
        rows_at_once: number of rows of a stripe.
        leave: called with the index of the first output row and the output rows; None if the rows are not needed.
        hear: called for each stripe with the index of its first row and, instead of rows, the attention scores
            (1, M, n) of its n kept tokens; None if the scores are not needed.
        kept: the kept tokens of the image (see `KeptTokens`).
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
