"""Layers of an XCiT for inference only. They are faster than the layers for training and need less memory.

The outputs equal those of the layers for training up to rounding. The batch norms of the stem are folded into the
convolutions before them. In XCA blocks, LayerScale is folded into the last layer of each branch. If there are many
tokens, a block processes them in parts and updates them in place. So the intermediate results of only one part are in
memory at a time, even for a very large image.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads, `C = D/M` channels per head.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Self, TypeVar, cast

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
    gelu_of,
)
from xcit.models.plain import is_watched
from xcit.models.stripes import ClassAttentionSums, SlidingStem, Sums, TensorTokens, pass_xca_block, spans, sums_of

NUMBERS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Maximum number of elements (tokens times width) in one part of the tokens, for each device type.

A device type that is not listed uses the value for "cuda". A part is large enough for full speed, and small enough for
the cache of a CPU or for a GPU with little memory. The hidden layer of the MLP usually has four times as many elements.
"""

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def tokens_at_once(tokens: Tensor) -> int | None:
    """Returns the maximum number of tokens in one part (see `NUMBERS_AT_ONCE`), counted over all images of the batch.

    Returns None if the tokens (B, N, D) must not be split, because the model is being compiled, traced or exported.
    """
    # If the tokens were split, the compiler could not fuse the operations on them. A traced or exported graph must work
    # for images of every size, so it can't contain a fixed number of parts.
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit._trace.is_tracing():
        return None
    return max(1, NUMBERS_AT_ONCE.get(tokens.device.type, NUMBERS_AT_ONCE["cuda"]) // tokens.shape[-1])


def stripe_rows(tokens: Tensor, width: int) -> int:
    """Returns the number of rows in a stripe of the token grid.

    A stripe has as many rows as one part may contain (see `NUMBERS_AT_ONCE`), but at least 1.

    Args:
        tokens: (..., D).
        width: number of tokens per row.
    """
    at_once = tokens_at_once(tokens)
    assert at_once is not None
    return max(1, at_once // width)


def parts(length: int, most: int | None) -> Iterator[tuple[int, int]]:
    """Splits `length` elements into parts of about equal length, and yields (start, end) of each part.

    A part has at most max(1, `most`) elements. If `most` is None, there is a single part.
    """
    num_parts = 1 if most is None else -(-length // max(1, most))
    return pairwise([0, *(length * i // num_parts for i in range(1, num_parts)), length])


_FUSIBLE = {
    *(Stem, ConvNorm, PositionCode, XCABlock, XCA, LPI, MLP, ClassAttentionBlock, ClassAttention),
    *(nn.ModuleList, nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.LayerNorm),
}


_MEMBERS: dict[str, type[nn.Module]] = {"stem": ConvNorm, "blocks": XCABlock, "cls_blocks": ClassAttentionBlock}


def check_fusible(model: nn.Module) -> None:
    """Checks that fusing would not remove or change what a user has added to the model.

    The final norm and the head are not checked, because they are not fused.

    Raises:
        XCiTError: if a module is wrapped, replaced, hooked or parametrised. The message contains the module's name.
    """
    for name, module in model.named_modules():
        part, _, member = name.partition(".")
        if part not in ("stem", "position", "blocks", "cls_blocks"):
            continue
        what = ""
        if type(module) not in _FUSIBLE or (member.isdecimal() and type(module) is not _MEMBERS[part]):
            what = f"is a {type(module).__name__}"
        elif is_watched(module):
            what = "has hooks"
        elif any(type(value) not in (nn.Parameter, type(None)) for value in module._parameters.values()):
            what = "has parameters that are not plain nn.Parameter"
        if what:
            raise XCiTError(
                f"can't fuse: {name} {what}, which the fused model would not contain: merge or remove this change, or "
                "use the model without fusing it"
            )


def is_fused(model: nn.Module) -> bool:
    """Returns whether the model, or a module within it, is the result of `fuse`."""
    return any(isinstance(module, FusedEmbedding) for module in model.modules())


class Fusible(nn.Module):
    """Base class of models with a method `fuse`.

    A model that is fused, or contains a fused model, can't be set to training mode.
    """

    def train(self, mode: bool = True) -> Self:
        """Sets training or evaluation mode, as `nn.Module.train` does.

        Raises:
            XCiTError: if `mode` is True and the model is fused or contains a fused model. The mode does not change.
        """
        if mode and is_fused(self):
            raise XCiTError("a fused model can't be trained: train the original model, then fuse it again")
        return super().train(mode)


class FusedEmbedding(nn.Module):
    """The fused form of `Stem` and `PositionCode`: it maps images (B, in_channels, h, w) to tokens (B, N, D), H and W.

    A large image is processed in stripes of pixel rows. Without stripes, the first feature map of the stem would take
    more memory than all other tensors of the model together.
    """

    def __init__(self, stem: Stem, position: PositionCode) -> None:
        super().__init__()
        self.convs = nn.ModuleList(fold_norm(layer) for layer in cast(Iterable[ConvNorm], stem))
        self.position = position

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        rows_at_once = self.pixel_rows_at_once(image)
        if rows_at_once is None or rows_at_once >= image.shape[2]:
            for index, conv in enumerate(self.convs):
                image = conv(F.gelu(image) if index else image)
            height, width = image.shape[2:]
            y, x = self.position.code(height, width)
            tokens = image.flatten(2).transpose(1, 2) + (y + x).flatten(0, 1)
            return tokens.contiguous(), height, width  # the blocks change the tokens in place
        height, width = self.grid(*image.shape[2:])
        tokens = image.new_empty(len(image), height, width, self.position.projection.out_channels)
        stripes = (image[:, :, start:end] for start, end in spans(image.shape[2], rows_at_once))
        for start, rows in self.slide(stripes, *image.shape[2:]):
            tokens[:, start : start + rows.shape[1]] = rows
        return tokens.flatten(1, 2), height, width

    def slide(self, stripes: Iterable[Tensor], height: int, width: int) -> Iterator[tuple[int, Tensor]]:
        """Computes the tokens of images that arrive in stripes of pixel rows.

        Args:
            stripes: the stripes from top to bottom, each (B, in_channels, r, width) with r pixel rows.
            height: height of the images in pixels.
            width: width of the images in pixels.

        Yields:
            The index of the first finished row of tokens, and k finished rows (B, k, W, D).
        """
        y, x = self.position.code(*self.grid(height, width))
        stem = SlidingStem(self.convs)
        num_pushed = num_done = 0
        for stripe in stripes:
            num_pushed += stripe.shape[2]
            rows = stem.push(stripe, is_last=num_pushed == height)
            end = num_done + rows.shape[1]
            if rows.shape[1]:
                yield num_done, rows + (y[num_done:end] + x)
            num_done = end

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns H and W of the token grid of an image of `height` x `width` pixels."""
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            # This is ceil(height / stride). It is not written as -(-height // stride), because in an exported graph the
            # division of negative integers rounds towards zero.
            height, width = (height - 1) // conv.stride[0] + 1, (width - 1) // conv.stride[1] + 1
        return height, width

    def numbers_a_pixel(self) -> tuple[float, int]:
        """Returns two numbers from which the memory of the stem is computed.

        Returns:
            The number of values in the stem's largest feature map, divided by the number of pixels of the image; and
            the stride of the whole stem in pixels.
        """
        numbers, stride = 0.0, 1
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            stride *= conv.stride[0]
            numbers = max(numbers, conv.out_channels / stride**2)
        return numbers, stride

    def pixel_rows_at_once(self, image: Tensor) -> int | None:
        """Returns how many pixel rows to process at once; None means all rows.

        The number is chosen so that the stem's largest feature map has about as many elements as one part of the tokens
        may contain (see `NUMBERS_AT_ONCE`).
        """
        at_once = tokens_at_once(image.new_empty(0, 1))
        if at_once is None:
            return None
        numbers, stride = self.numbers_a_pixel()
        return max(stride, int(at_once / (max(1, len(image) * image.shape[3]) * numbers)))


class FusedXCABlock(nn.Module):
    """The fused form of `XCABlock`. Its input is the tokens (B, N, D) of an H x W grid.

    The block changes the tokens in place, unless it has hooks or is being compiled, traced or exported.

    Attributes:
        form: the function that computes XCA. An export replaces it with `ops.xca_in_graph`.
    """

    def __init__(self, block: XCABlock) -> None:
        super().__init__()
        self.form: Callable[..., Tensor] = ops.xca
        self.norm_xca, self.norm_lpi, self.norm_mlp = block.norm_xca, block.norm_lpi, block.norm_mlp
        self.temperature, self.qkv = block.xca.temperature, block.xca.qkv
        self.proj = scale_outputs(block.xca.proj, block.scale_xca)
        self.conv1, self.conv2 = block.lpi.conv1, scale_outputs(block.lpi.conv2, block.scale_lpi)
        scale, shift = norm_line(block.lpi.norm)
        self.norm_scale = frozen(scale[:, None, None], like=self.temperature)
        self.norm_shift = frozen(shift[:, None, None], like=self.temperature)
        self.fc1, self.fc2 = block.mlp.fc1, scale_outputs(block.mlp.fc2, block.scale_mlp)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        if is_watched(self):  # a hook may store the input, so the input must not change
            tokens = tokens.clone()
        num_tokens, at_once = tokens.shape[1], tokens_at_once(tokens)
        if at_once is None:
            tokens = tokens + self._mixed(tokens)
            image = self.norm_lpi(tokens).transpose(1, 2).unflatten(2, (height, width))
            tokens = tokens + self._convolved(image).flatten(2).transpose(1, 2)
            return tokens + self.fc2(gelu_of(self.fc1, self.norm_mlp(tokens)))
        if num_tokens <= at_once:
            for start, end in parts(len(tokens), at_once // num_tokens):
                images = tokens[start:end]
                self._xca(images)
                grid = images.unflatten(1, (height, width))
                grid += self._lpi(self.norm_lpi(grid))
            self.add_mlp(tokens.flatten(0, 1))
        else:
            rows_at_once = stripe_rows(tokens, width)
            for image in tokens.unflatten(1, (height, width)):
                place = TensorTokens(image)
                pass_xca_block(self, place, sums_of(place, self.norm_xca, rows_at_once), rows_at_once, place.write)
        return tokens

    def _xca(self, tokens: Tensor) -> None:
        tokens += self._mixed(tokens)

    def _mixed(self, tokens: Tensor) -> Tensor:
        """Returns the output of the XCA branch (B, N, D)."""
        return self.form(
            self.norm_xca(tokens), self.qkv.weight, self.qkv.bias, self.temperature, self.proj.weight, self.proj.bias
        )

    def mixing(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """Returns the matrix P (D, D) and the row p (D,) of one image, for which the output of XCA is X P + p.

        `ops/forms.py` explains this form. P and p are computed in the dtype of the sums, and returned in the dtype of
        the weights.

        Args:
            sums: the sums over the tokens X of the image.
        """
        wide = sums.gram.dtype
        weight, bias = self.qkv.weight.to(wide), None if self.qkv.bias is None else self.qkv.bias.to(wide)
        attention = ops.attention_from_gram(
            sums.gram[None], sums.total[None, None], sums.count, weight, bias, self.temperature.to(wide)
        )
        matrix, row = ops.mixing_matrix(attention, weight, bias, self.proj.weight.to(wide), self.proj.bias.to(wide))
        dtype = self.qkv.weight.dtype
        return matrix[0].to(dtype), row[0, 0].to(dtype)

    def _lpi(self, normed: Tensor) -> Tensor:
        """Applies LPI to normalised tokens (B, H, W, D). The output has the same shape."""
        return self._convolved(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _convolved(self, image: Tensor) -> Tensor:
        """Applies LPI to normalised tokens in the layout of an image (B, D, H, W). The output has the same shape."""
        dim = image.shape[1]
        image = F.conv2d(image, self.conv1.weight, self.conv1.bias, padding=1, groups=dim)
        image = torch.ops.aten.gelu_(image)
        # The norm can't be folded into the second convolution: that convolution pads the output of the norm with zeros.
        image.mul_(self.norm_scale).add_(self.norm_shift)
        return F.conv2d(image, self.conv2.weight, self.conv2.bias, padding=1, groups=dim)

    def add_mlp(self, tokens: Tensor) -> None:
        """Adds the output of the MLP to tokens (n, D) in place, one part after another."""
        for start, end in parts(len(tokens), tokens_at_once(tokens)):
            part = tokens[start:end]
            hidden = gelu_of(self.fc1, self.norm_mlp(part))
            part += ops.linear(hidden, self.fc2.weight, self.fc2.bias)


class FusedClassAttentionBlock(nn.Module):
    """The fused form of `ClassAttentionBlock`, with the class token and the patch tokens as separate inputs."""

    def __init__(self, block: ClassAttentionBlock) -> None:
        super().__init__()
        self.tokens_norm = block.tokens_norm
        self.norm_attn, self.norm_mlp = block.norm_attn, block.norm_mlp
        self.attn, self.scale_attn = block.attn, block.scale_attn
        self.mlp, self.scale_mlp = block.mlp, block.scale_mlp

    def forward(self, cls: Tensor, patches: Tensor, patches_wanted: bool) -> Tensor:
        """Returns the class token (B, 1, D) after the block.

        Args:
            cls: the class token (B, 1, D) before the block.
            patches: the patch tokens (B, N, D) before the block.
            patches_wanted: if true, `patches` is changed in place to the patch tokens after the block. If false,
                `patches` does not change.
        """
        at_once, attn = tokens_at_once(patches), self.attn
        if at_once is None or patches.shape[:2].numel() <= at_once:
            normed_cls, normed = self.norm_attn(cls), self.norm_attn(patches)
            key_value = (attn.k.weight, attn.k.bias, attn.v.weight, attn.v.bias)
            tokens = torch.cat([normed_cls, normed], dim=1)
            value = ops.class_attention(attn.q(normed_cls[:, 0]), tokens, *key_value, attn.num_heads)
            if patches_wanted:
                patches.copy_(self.moved(patches, normed))
            return self.finish(cls, value)
        attention = ClassAttentionSums(self, cls)
        for start, end in parts(patches.shape[1], at_once // len(patches)):
            part = patches[:, start:end]
            normed = self.norm_attn(part)
            attention.add(normed)
            if patches_wanted:
                part.copy_(self.moved(part, normed))
        return self.finish(cls, attention.value())

    def moved(self, patches: Tensor, normed: Tensor) -> Tensor:
        """Returns the patch tokens (..., D) after the block.

        Args:
            patches: the tokens before the block.
            normed: the same tokens after `norm_attn`.
        """
        moved = torch.addcmul(patches, normed, self.scale_attn)
        return (self.norm_mlp(moved) if self.tokens_norm else moved).mul_(2)

    def finish(self, cls: Tensor, value: Tensor) -> Tensor:
        """Returns the class token (B, 1, D) after the block.

        Args:
            cls: the class token (B, 1, D) before the block.
            value: the output of the attention (B, D), before its projection.
        """
        cls = self.norm_mlp(cls + self.scale_attn * self.attn.proj(value)[:, None])
        return cls + self.scale_mlp * self.mlp(cls)


def norm_line(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns the scale and the shift of a batch norm in evaluation mode, each (channels,) in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def fold_norm(layer: ConvNorm) -> nn.Conv2d:
    """Returns a convolution with the same outputs as `layer`. The batch norm is folded into the convolution."""
    scale, shift = norm_line(layer.norm)
    return with_numbers(layer.conv, layer.conv.weight * scale.view(-1, 1, 1, 1), shift)


def scale_outputs(layer: Layer, scale: Tensor) -> Layer:
    """Returns a copy of the layer with outputs that are multiplied by `scale` (outputs,)."""
    assert layer.bias is not None
    scale = scale.double()
    return with_numbers(layer, layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)), layer.bias * scale)


def with_numbers(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    """Returns a copy of the layer with the given weight and bias."""
    layer = copy.deepcopy(layer)
    layer.weight, layer.bias = frozen(weight, like=layer.weight), frozen(bias, like=layer.weight)
    return layer


def frozen(value: Tensor, like: Tensor) -> nn.Parameter:
    """Returns a parameter without gradient, in the dtype of `like`."""
    return nn.Parameter(value.to(like.dtype), requires_grad=False)
