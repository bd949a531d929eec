"""XCiT for inference alone: the same outputs from fewer and smaller steps, in bounded memory.

Batch norms become part of the convolutions before them, LayerScale of the last weights of each branch. Where the tokens
are too many for the cache, a block goes over them in parts and adds to them where they lie: beside the tokens, only one
part's intermediates exist at a time, whatever the size of the image.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads, `C = D/M` channels a head.
"""

import copy
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops
from xcit.errors import XCiTError
from xcit.models.layers import (
    LPI,
    MLP,
    XCA,
    ClassAttention,
    ClassAttentionBlock,
    ConvNorm,
    PositionCode,
    Stem,
    XCABlock,
)
from xcit.models.plain import is_watched

NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Numbers of the tokens in a part, by device: enough for full speed, few enough for the cache or a small GPU.

The MLP makes four times as many of them.
"""

HALO = 2
"""Rows on either side that a row sees in LPI: one a convolution."""

LEAST_ROWS = 4
"""Rows of patches that go through the stem at once, however wide: of one row, half the pixels that it sees are not its.
"""

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def tokens_at_once(tokens: Tensor) -> int | None:
    """How many of the tokens (B, N, D), over all images, make a part; none where there are to be no parts."""
    # The compiler fuses what it sees whole; a traced or exported graph has to serve every size.
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit._trace.is_tracing():
        return None
    return max(1, NUMBERS_AT_ONCE.get(tokens.device.type, NUMBERS_AT_ONCE["cuda"]) // tokens.shape[-1])


def parts(length: int, most: int | None) -> Iterator[tuple[int, int]]:
    """(start, end) of parts of about equal length, each of at most `most`, or 1; all in one if there is no limit."""
    num_parts = 1 if most is None else -(-length // max(1, most))
    return pairwise([0, *(length * i // num_parts for i in range(1, num_parts)), length])


_FUSIBLE = {
    *(Stem, ConvNorm, PositionCode, XCABlock, XCA, LPI, MLP, ClassAttentionBlock, ClassAttention),
    *(nn.ModuleList, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm),
}


def check_fusible(model: nn.Module) -> None:
    """Refuses a model with parts that fusing would drop or alter: the final norm and the head alone are called as is.

    Raises:
        XCiTError: naming the first module that is wrapped, replaced, hooked or parametrised.
    """
    for name, module in model.named_modules():
        if name.partition(".")[0] not in ("stem", "position", "blocks", "cls_blocks"):
            continue
        what = ""
        if type(module) not in _FUSIBLE:
            what = f"is a {type(module).__name__}"
        elif is_watched(module):
            what = "has hooks"
        elif any(type(value) not in (nn.Parameter, type(None)) for value in module._parameters.values()):
            what = "has parameters of another kind"
        if what:
            raise XCiTError(
                f"can't fuse: {name} {what}, which fusing would leave out: merge or remove it, or use the model unfused"
            )


class FusedEmbedding(nn.Module):
    """`Stem` and `PositionCode` in one: image (B, in_channels, h, w) to tokens (B, N, D), H and W.

    A large image goes through in stripes of rows, each with the rows beside it that it sees: the stem's first map would
    otherwise be the peak of the model's memory.
    """

    def __init__(self, stem: Stem, position: PositionCode) -> None:
        super().__init__()
        self.convs = nn.ModuleList(fold_norm(layer) for layer in stem if isinstance(layer, ConvNorm))
        self.strides = [layer.conv.stride[0] for layer in stem if isinstance(layer, ConvNorm)]
        # How many times as many numbers as the last map the largest one has: a map before n more convolutions has the
        # square of their strides' product times the pixels, and 1 / 2^n of the width.
        self.largest_map = max(
            math.prod(self.strides[index:]) ** 2 // 2 ** (len(self.strides) - index)
            for index in range(1, len(self.strides) + 1)
        )
        self.position = position

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        if tokens_at_once(image) is None:
            return self._whole(image)
        batch, height, width = image.shape[0], *image.shape[2:]
        heights = [height]  # of the image and of each map
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
            heights.append(height)
        y, x = self.position.code(height, width)
        tokens = image.new_empty(batch, height, width, x.shape[-1])
        at_once = tokens_at_once(tokens)
        most = None if at_once is None else max(LEAST_ROWS, at_once // (batch * width * self.largest_map))
        for start, end in parts(height, most):
            tokens[:, start:end] = self._rows(image, start, end, heights) + (y[start:end] + x)
        return tokens.flatten(1, 2), height, width

    def _whole(self, image: Tensor) -> tuple[Tensor, int, int]:
        for index, conv in enumerate(self.convs):
            image = conv(F.gelu(image) if index else image)
        height, width = image.shape[2:]
        y, x = self.position.code(height, width)
        return image.flatten(2).transpose(1, 2) + (y + x).flatten(0, 1), height, width

    def _rows(self, image: Tensor, start: int, end: int, heights: list[int]) -> Tensor:
        """Rows start..end of the patches, (B, rows, W, D)."""
        spans = [(start, end)]  # the rows of each map, from the last to the image, that these see
        for height, stride in zip(reversed(heights[:-1]), reversed(self.strides), strict=True):
            start, end = spans[-1]
            spans.append((max(stride * start - 1, 0), min(_seen_to(end, stride), height)))
        spans.reverse()
        rows = image[:, :, slice(*spans[0])]
        for index, (conv, stride, (_, seen_to), (start, end)) in enumerate(
            zip(self.convs, self.strides, spans, spans[1:], strict=False)
        ):
            assert isinstance(conv, nn.Conv2d)
            if index:
                torch.ops.aten.gelu_(rows)
            # A convolution pads both sides or none, at no cost. With stride 2 it may pad both at the top of an image:
            # the lower row is either needed, or beyond the reach of the last stride.
            at_top, at_bottom = start == 0, seen_to < _seen_to(end, stride)
            both = at_top and (at_bottom or stride == 2)
            if not both and (at_top or at_bottom):
                rows = F.pad(rows, (0, 0, int(at_top), int(at_bottom)))
            rows = F.conv2d(rows, conv.weight, conv.bias, stride=stride, padding=(int(both), 1))
        return rows.permute(0, 2, 3, 1)


def _seen_to(end: int, stride: int) -> int:
    """The row after the last one that the output rows up to `end` see, in an image without a lower border."""
    return stride * (end - 1) + 2


class FusedXCABlock(nn.Module):
    """`XCABlock` that changes its tokens (B, N, D), of an H x W grid, where they lie."""

    def __init__(self, block: XCABlock) -> None:
        super().__init__()
        self.norm_xca, self.norm_lpi, self.norm_mlp = block.norm_xca, block.norm_lpi, block.norm_mlp
        self.temperature, self.qkv = block.xca.temperature, block.xca.qkv
        self.proj = scale_outputs(block.xca.proj, block.scale_xca)
        self.conv1, self.conv2 = block.lpi.conv1, scale_outputs(block.lpi.conv2, block.scale_lpi)
        scale, shift = norm_line(block.lpi.norm)
        self.norm_scale = frozen(scale[:, None, None], like=self.temperature)
        self.norm_shift = frozen(shift[:, None, None], like=self.temperature)
        self.fc1, self.fc2 = block.mlp.fc1, scale_outputs(block.mlp.fc2, block.scale_mlp)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        if is_watched(self):  # what a hook has seen go in must not change
            tokens = tokens.clone()
        num_tokens, at_once = tokens.shape[1], tokens_at_once(tokens)
        if at_once is None:
            tokens = tokens + self._mixed(tokens)
            tokens = tokens + self._lpi(self.norm_lpi(tokens.unflatten(1, (height, width)))).flatten(1, 2)
            return tokens + self.fc2(F.gelu(self.fc1(self.norm_mlp(tokens))))
        if num_tokens <= at_once:
            for start, end in parts(len(tokens), at_once // num_tokens):
                images = tokens[start:end]
                self._xca(images)
                grid = images.unflatten(1, (height, width))
                grid += self._lpi(self.norm_lpi(grid))
            self._mlp(tokens.flatten(0, 1), at_once)
        else:
            for image in tokens:
                self._in_stripes(image.unflatten(0, (height, width)), at_once)
        return tokens

    def _xca(self, tokens: Tensor) -> None:
        tokens += self._mixed(tokens)

    def _mixed(self, tokens: Tensor) -> Tensor:
        """XCA's output (B, N, D)."""
        return ops.xca(
            self.norm_xca(tokens), self.qkv.weight, self.qkv.bias, self.temperature, self.proj.weight, self.proj.bias
        )

    def _in_stripes(self, image: Tensor, at_once: int) -> None:
        """The block on one image (H, W, D): a pass for XCA's Gram matrix, and one in stripes of rows for all the rest.

        A stripe goes through LPI with the rows beside it that it sees, to which XCA's part is added before.
        """
        matrix, row = self._mixing(image.flatten(0, 1), at_once)
        height, width, _ = image.shape
        first, seen = 0, image[:0]  # the normed rows first.. that the last stripe saw: in `image` they have changed
        # LPI makes no more numbers than it takes, the MLP four times as many.
        for start, end in parts(height, 2 * at_once // width):
            seen = seen[max(start - HALO, 0) - first :]
            first = max(start - HALO, 0)
            new = image[first + len(seen) : end + HALO]
            tokens = new.flatten(0, 1)
            normed = self.norm_xca(tokens)
            tokens.add_(row).addmm_(normed, matrix)
            seen = torch.cat([seen, self.norm_lpi(new)])
            stripe = image[start:end]
            stripe += self._lpi(seen[None])[0, start - first : end - first]
            self._mlp(stripe.flatten(0, 1), at_once)

    def _mixing(self, tokens: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
        """XCA of one image's tokens (N, D) as a matrix (D, D) and a row (D,): see `ops.mixing_matrix`."""
        gram, total = ops.gram(self.norm_xca(tokens[None, :0]))
        for start, end in parts(len(tokens), at_once):
            more = ops.gram(self.norm_xca(tokens[None, start:end]))
            gram, total = gram + more[0], total + more[1]
        weight, bias = self.qkv.weight, self.qkv.bias
        attention = ops.attention_from_gram(gram, total, len(tokens), weight, bias, self.temperature)
        matrix, row = ops.mixing_matrix(attention, weight, bias, self.proj.weight, self.proj.bias)
        return matrix[0].to(tokens.dtype), row[0].to(tokens.dtype)

    def _lpi(self, normed: Tensor) -> Tensor:
        """LPI of normed tokens (B, H, W, D), channels last as they lie."""
        image = normed.permute(0, 3, 1, 2)
        dim = image.shape[1]
        image = F.conv2d(image, self.conv1.weight, self.conv1.bias, padding=1, groups=dim)
        image = torch.ops.aten.gelu_(image)
        # Not part of the second convolution: that one pads what comes out of the norm.
        image.mul_(self.norm_scale).add_(self.norm_shift)
        image = F.conv2d(image, self.conv2.weight, self.conv2.bias, padding=1, groups=dim)
        return image.permute(0, 2, 3, 1)

    def _mlp(self, tokens: Tensor, at_once: int | None) -> None:
        """MLP of tokens (B*N, D)."""
        for start, end in parts(len(tokens), at_once):
            part = tokens[start:end]
            hidden = torch.ops.aten.gelu_(self.fc1(self.norm_mlp(part)))
            part.add_(self.fc2.bias).addmm_(hidden, self.fc2.weight.t())


class FusedClassAttentionBlock(nn.Module):
    """`ClassAttentionBlock` on class token (B, 1, D) and patches (B, N, D) apart; these change where they lie."""

    def __init__(self, block: ClassAttentionBlock) -> None:
        super().__init__()
        self.tokens_norm = block.tokens_norm
        self.norm_attn, self.norm_mlp = block.norm_attn, block.norm_mlp
        self.attn, self.scale_attn = block.attn, block.scale_attn
        self.mlp, self.scale_mlp = block.mlp, block.scale_mlp

    def forward(self, cls: Tensor, patches: Tensor, patches_wanted: bool) -> Tensor:
        """The class token after the block; the patches are brought there too only where they are wanted."""
        at_once = tokens_at_once(patches)
        spans = [(0, patches.shape[1])] if at_once is None else list(parts(patches.shape[1], at_once // len(patches)))
        attn, normed_cls = self.attn, self.norm_attn(cls)
        vectors, offsets = ops.class_query(attn.q(normed_cls[:, 0]), attn.k.weight, attn.k.bias, attn.num_heads)
        scores = [normed_cls @ vectors.mT, *(self.norm_attn(patches[:, a:b]) @ vectors.mT for a, b in spans)]
        weights = (torch.cat(scores, dim=1).mT + offsets).softmax(dim=-1)  # (B, M, 1+N)
        mixed = weights[:, :, :1] * normed_cls
        for start, end in spans:
            part = patches[:, start:end]
            normed = self.norm_attn(part)
            mixed = mixed + weights[:, :, 1 + start : 1 + end] @ normed
            if patches_wanted:
                part.addcmul_(normed, self.scale_attn)
                part.copy_(self.norm_mlp(part) if self.tokens_norm else part).mul_(2)
        cls = cls + self.scale_attn * attn.proj(ops.class_value(mixed, attn.v.weight, attn.v.bias))[:, None]
        cls = self.norm_mlp(cls)
        return cls + self.scale_mlp * self.mlp(cls)


def norm_line(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (channels,) of a batch norm in evaluation, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """The convolution and its norm as one convolution."""
    scale, shift = norm_line(layer.norm)
    return with_numbers(layer.conv, layer.conv.weight * scale.view(-1, 1, 1, 1), shift)


def scale_outputs(layer: Layer, scale: Tensor) -> Layer:
    """The layer with its outputs multiplied by a vector (outputs,)."""
    assert layer.bias is not None
    scale = scale.double()
    return with_numbers(layer, layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)), layer.bias * scale)


def with_numbers(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    """A copy of the layer with other numbers."""
    layer = copy.deepcopy(layer)
    layer.weight, layer.bias = frozen(weight, like=layer.weight), frozen(bias, like=layer.weight)
    return layer


def frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter that is not learned, in the precision of another."""
    return nn.Parameter(value.to(like.dtype), requires_grad=False)
