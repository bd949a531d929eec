"""XCiT as the backbone of a detector or segmenter: the tokens after four blocks become maps of strides 4, 8, 16, 32.

These four maps are called the pyramid.

Shapes: `B` batch, `D` width, `H` x `W` token grid of an h x w image.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.config import XCiTConfig
from xcit.models.first_values import reset_within
from xcit.models.fused import Fusible, frozen, norm_line
from xcit.models.plain import is_watched
from xcit.models.sharing import Shareable
from xcit.models.xcit import FusedXCiT, XCiT

STRIDES = (4, 8, 16, 32)
"""Stride of each map in pixels of the image, from the finest map to the coarsest."""


def default_out_indices(depth: int) -> tuple[int, ...]:
    """Returns the indices of the blocks that output the tokens for the maps.

    The blocks are those at 1/3, 1/2, 2/3 and the end of the depth, as in the paper's models. Counted from 0, they are
    3, 5, 7, 11 for depth 12, and 7, 11, 15, 23 for depth 24.
    """
    return tuple(max(0, depth * sixths // 6 - 1) for sixths in (2, 3, 4, 6))


class Shrink(nn.Module):
    """Max pooling over `factor` x `factor` pixels without padding.

    A side that is shorter than `factor` pixels is pooled to 1 pixel.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        """Pools maps (B, D, H, W) to (B, D, max(1, H // factor), max(1, W // factor))."""
        height, width = image.shape[-2:]
        return F.max_pool2d(image, (min(self.factor, height), min(self.factor, width)))


class TokenPyramid(nn.Module):
    """Turns four maps of tokens into maps of strides 4, 8, 16 and 32 with the same number of channels.

    The stride of each input map is the patch size. A transposed convolution doubles the sides of a map, and max pooling
    divides them by a power of two. The sides of each output map are the sides of the token grid, multiplied or divided
    by a power of two and rounded down. If the sides of the image are not multiples of the patch size, the sides of the
    maps are not exactly the sides of the image divided by the stride.
    """

    def __init__(self, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        if patch_size > 4 * STRIDES[0]:
            raise XCiTError(f"a pyramid needs patches of at most {4 * STRIDES[0]} pixels per side, not {patch_size}")
        self.stride4 = _resize(embed_dim, patch_size, 4)
        self.stride8 = _resize(embed_dim, patch_size, 8)
        self.stride16 = _resize(embed_dim, patch_size, 16)
        self.stride32 = _resize(embed_dim, patch_size, 32)

    def fold_norms(self) -> None:
        """Folds each batch norm into the transposed convolution before it, for inference only.

        If the norm or the convolution is replaced, hooked or parametrised, both stay unchanged and are called as
        modules.
        """
        for branch in (self.stride4, self.stride8):
            layers = list(branch) if type(branch) is nn.Sequential and not is_watched(branch) else []
            for index, (up, norm) in enumerate(pairwise(layers)):
                if type(norm) is nn.BatchNorm2d and not is_watched(norm) and _is_plain_up(up):
                    assert isinstance(branch, nn.Sequential) and isinstance(up, nn.ConvTranspose2d)
                    scale, shift = norm_line(norm)
                    assert up.bias is not None
                    up.weight = frozen(up.weight * scale.view(1, -1, 1, 1), like=up.weight)
                    up.bias = frozen(up.bias * scale + shift, like=up.weight)
                    branch[index + 1] = nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turns four maps (B, D, H, W), in the order of their blocks, into maps of strides 4, 8, 16 and 32."""
        first, second, third, fourth = maps
        return self.stride4(first), self.stride8(second), self.stride16(third), self.stride32(fourth)


class XCiTPyramid(Fusible):
    """An XCiT without class token, and a pyramid of its tokens. It maps images (B, in_channels, h, w) to four maps.

    The images must be normalised. Each side must have at least the length of one patch. The tokens are the outputs of
    four blocks, without a norm.

    Args:
        config: the config of an XCiT without class attention (`cls_depth` 0).
        out_indices: indices of the four blocks, counted from 0, in rising order; None means `default_out_indices`.

    Attributes:
        xcit: the backbone.
        pyramid: the layers that compute the maps from the backbone's tokens.
        out_indices: indices of the four blocks.

    Raises:
        XCiTError: if `out_indices` are not the indices of four blocks in rising order, or the config has a class token.
    """

    def __init__(self, config: XCiTConfig, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        if config.cls_depth:
            raise XCiTError(
                f"a pyramid uses only patch tokens: set cls_depth to 0, not {config.cls_depth}, and global_pool to none"
            )
        self.out_indices = tuple(default_out_indices(config.depth) if out_indices is None else out_indices)
        _check_indices(self.out_indices, config.depth)
        self.xcit = XCiT(config)
        self.pyramid = TokenPyramid(config.embed_dim, config.patch_size)

    def reset_parameters(self) -> None:
        """Sets all weights to new random values, as at construction. Learned weights are lost."""
        reset_within(self)

    @property
    def config(self) -> XCiTConfig:
        """Config of the backbone."""
        return self.xcit.config

    @property
    def embed_dim(self) -> int:
        """Number of channels D of each map."""
        return self.xcit.embed_dim

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing on or off (timm's method name).

        If it is on, the activations of each block are not stored, but recomputed in the backward pass.
        """
        self.xcit.set_grad_checkpointing(enable)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns maps of strides 4, 8, 16 and 32, each (B, D, height, width)."""
        # The maps keep the memory layout of the fused model's tokens, which is channels last. Convolutions are fastest
        # with this layout.
        if isinstance(self.xcit, FusedXCiT):
            tokens = self.xcit.forward_intermediates(
                images, self.out_indices, output_fmt="NLC", intermediates_only=True
            )
            grid = self.xcit.embedding.grid(images.shape[2], images.shape[3])
            maps = [some.unflatten(1, grid).permute(0, 3, 1, 2) for some in tokens if isinstance(some, Tensor)]
        else:
            maps = cast(
                list[Tensor], self.xcit.forward_intermediates(images, self.out_indices, intermediates_only=True)
            )
        # In a model with few blocks, two of the four indices may be equal.
        by_block = dict(zip(sorted(set(self.out_indices)), maps, strict=True))
        four: tuple[Tensor, Tensor, Tensor, Tensor] = self.pyramid([by_block[index] for index in self.out_indices])
        return four


class OnPyramid(Shareable, Fusible):
    """Base class of models that consist of an `XCiTPyramid` and heads for its maps.

    Attributes:
        backbone: the XCiT and its pyramid.
    """

    backbone: XCiTPyramid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns gradient checkpointing of the backbone on or off (timm's method name).

        If it is on, the activations of each block are not stored, but recomputed in the backward pass.
        """
        self.backbone.set_grad_checkpointing(enable)

    def fuse(self) -> Self:
        """Returns a faster copy for inference. The copy needs less memory, and can't be trained.

        In the copy, the backbone is fused (see `XCiT.fuse`), and the pyramid's batch norm is folded into the
        convolution before it. The weights after the backbone are in the channels-last format, because the maps have
        this format.
        """
        fused = copy.deepcopy(self)
        fused.backbone.xcit = self.backbone.xcit.fuse()
        fused.backbone.pyramid.fold_norms()
        for part in (fused.backbone.pyramid, *(part for part in fused.children() if part is not fused.backbone)):
            part.to(memory_format=torch.channels_last)
        return fused.requires_grad_(False).eval()


def _resize(embed_dim: int, patch_size: int, stride: int) -> nn.Module:
    """Returns the layers that resize a map from stride `patch_size` to stride `stride`.

    For patches of 8 and 16 pixels per side, the layers are those of the published models.
    """

    def double() -> nn.Module:
        return nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)

    if patch_size == 4 * stride:
        return nn.Sequential(double(), nn.BatchNorm2d(embed_dim), nn.GELU(), double())
    if patch_size == 2 * stride:
        return nn.Sequential(double())
    if patch_size == stride:
        return nn.Identity()
    return Shrink(stride // patch_size)


def _is_plain_up(layer: nn.Module) -> bool:
    """Returns whether a layer is torch's own transposed convolution, with plain parameters and without hooks."""
    return (
        type(layer) is nn.ConvTranspose2d
        and not is_watched(layer)
        and type(layer._parameters.get("weight")) is nn.Parameter
        and type(layer._parameters.get("bias")) is nn.Parameter
    )


def _check_indices(indices: Sequence[int], depth: int) -> None:
    if len(indices) != len(STRIDES):
        raise XCiTError(
            f"out_indices must contain {len(STRIDES)} blocks, one for each stride {STRIDES}, not {len(indices)}"
        )
    if list(indices) != sorted(indices) or not all(0 <= index < depth for index in indices):
        raise XCiTError(
            f"out_indices {tuple(indices)} must be in rising order, and each must be one of the {depth} blocks, "
            "counted from 0"
        )
