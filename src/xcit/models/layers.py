"""The layers and blocks of XCiT. "Paper" means the XCiT paper (arXiv 2106.09681).

The layers are: stem of convolutions, position code, cross-covariance attention (XCA), local patch interaction (LPI),
MLP and class attention. The blocks are `XCABlock` and `ClassAttentionBlock`. No layer changes its input in place.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops
from xcit.models.plain import is_plain, is_watched
from xcit.models.refusals import NotScripted, refuse_symbols
from xcit.ops import reference

NORM_EPS = 1e-6


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, then batch norm. A side of n pixels becomes ceil(n / stride) pixels long."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(image))
        return out


class Stem(nn.Sequential):
    """Turns images (B, in_channels, h, w) into patch tokens in the layout of an image (B, D, H, W).

    The stem consists of one `ConvNorm` per stride, with GELU between them. The number of output channels doubles from
    one convolution to the next. For example, four convolutions have D/8, D/4, D/2 and D output channels.
    """

    def __init__(self, in_channels: int, embed_dim: int, strides: Sequence[int]) -> None:
        widths = [in_channels] + [embed_dim >> i for i in reversed(range(len(strides)))]
        super().__init__(*(ConvNorm(a, b, stride) for (a, b), stride in zip(pairwise(widths), strides, strict=True)))

    def forward(self, image: Tensor) -> Tensor:
        for i, layer in enumerate(self):
            image = layer(F.gelu(image) if i else image)
        return image


class PositionCode(NotScripted, nn.Module):
    """Position code of the token grid: a Fourier code, projected to the width D.

    The output for a grid of any size H x W is (1, N, D).
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2 * ops.POSITION_DIM, embed_dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        refuse_symbols(height, width)
        if is_plain(self.projection):
            y, x = self.code(height, width)
            return (y + x).flatten(0, 1)[None]
        device = next(self.projection.parameters()).device
        y, x = ops.fourier_position(height, device), ops.fourier_position(width, device)
        code = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=2)  # (H, W, 2 * 32)
        projected: Tensor = self.projection(code.permute(2, 0, 1)[None].to(_float_of(self.projection)))
        return projected.flatten(2).transpose(1, 2)

    def code(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns two terms, (H, 1, D) and (W, D). Their broadcast sum (H, W, D) is the position code of the grid."""
        weight, bias = self.projection.weight.flatten(1), self.projection.bias
        # The code of (y, x) is [code(y), code(x)], so its projection is the sum of a term for the row and a term for
        # the column. This takes H + W projections instead of H * W.
        weight_y, weight_x = weight.split(ops.POSITION_DIM, dim=1)
        y = F.linear(ops.fourier_position(height, weight.device).to(weight.dtype), weight_y)
        x = F.linear(ops.fourier_position(width, weight.device).to(weight.dtype), weight_x, bias)
        return y[:, None], x


def init_linear(layer: nn.Linear) -> None:
    """Draws the weights from a normal distribution with standard deviation 0.02, and sets the biases to 0.

    The authors' code truncates the distribution at -2 and 2. These limits are a hundred standard deviations from 0, so
    the truncation has no effect and is left out here.
    """
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _float_of(layer: nn.Module) -> torch.dtype:
    """Returns the dtype of a layer's floating-point parameters; float32 if there are none, as in a quantised layer."""
    return next((value.dtype for value in layer.parameters() if value.is_floating_point()), torch.float32)


def scaled(layer: nn.Linear | nn.Conv2d, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of a layer, multiplied by `scale` (outputs,) unless `scale` is None.

    With this weight and bias, the outputs of the layer are multiplied by `scale`.
    """
    assert layer.bias is not None
    if scale is None:
        return layer.weight, layer.bias
    return scale.view(-1, *[1] * (layer.weight.ndim - 1)) * layer.weight, scale * layer.bias


def computes_in_float16(tokens: Tensor) -> bool:
    """Returns whether products with the tokens are computed in float16, because of autocast or the tokens' dtype."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) is torch.float16
    return tokens.dtype is torch.float16


def gelu_of(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """Computes a linear layer and GELU, from the layer's weights if the layer is plain (see `plain.py`)."""
    if is_plain(layer):
        return ops.linear(tokens, layer.weight, layer.bias, gelu=True)
    return F.gelu(layer(tokens))


class XCA(nn.Module):
    """Cross-covariance attention (paper, section 3.2) on tokens (B, N, D).

    If `is_direct` is true, `forward` accepts `scale` (D,), by which the output is multiplied. The multiplication is
    applied to the weights of the last layer.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def reset_parameters(self) -> None:
        """Sets the temperature to its initial value, 1. The linear layers have their own `reset_parameters`."""
        nn.init.ones_(self.temperature)

    @property
    def is_direct(self) -> bool:
        """Whether the output may be computed from the layers' weights, without calling the layers."""
        return is_plain(self.qkv, self.proj)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is not None or self.is_direct:
            weight, bias = scaled(self.proj, scale)
            return ops.xca(tokens, self.qkv.weight, self.qkv.bias, self.temperature, weight, bias)
        out: Tensor = self.proj(ops.xca_of_qkv(self.qkv(tokens), self.temperature))
        return out


class LPI(nn.Module):
    """Local patch interaction (paper, section 3.3) on tokens (B, N, D) of an H x W grid.

    If `is_direct` is true, `forward` accepts `scale` (D,), by which the output is multiplied. The multiplication is
    applied to the weights of the last layer.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)

    @property
    def is_direct(self) -> bool:
        """Whether the output may be computed from the layers' weights, without calling the layers."""
        return is_plain(self.conv1, self.conv2)

    def forward(self, tokens: Tensor, height: int, width: int, scale: Tensor | None = None) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, (height, width))
        if image.device.type != "cpu":  # on a CPU, channels last is faster, and the tokens have this layout already
            image = image.contiguous()
        conv1 = self.conv1
        if scale is not None or self.is_direct:
            assert conv1.bias is not None
            image = ops.lpi(image, conv1.weight, conv1.bias, self.norm, *scaled(self.conv2, scale))
        else:
            image = self.conv2(self.norm(F.gelu(conv1(image))))
        return image.flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with GELU between them, applied to each token separately.

    If `is_direct` is true, `forward` accepts `scale` (D,), by which the output is multiplied. The multiplication is
    applied to the weights of the last layer.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    @property
    def is_direct(self) -> bool:
        """Whether the output of the last layer may be computed from its weights, without calling the layer."""
        return is_plain(self.fc2)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        hidden = gelu_of(self.fc1, tokens)
        if scale is not None or self.is_direct:
            return ops.linear(hidden, *scaled(self.fc2, scale))
        out: Tensor = self.fc2(hidden)
        return out


class ClassAttention(nn.Module):
    """Multi-head attention with the class token as the only query.

    It maps tokens (B, 1+N, D), with the class token first, to a new class token (B, D).
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.v = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.k, self.v
        query = self.q(tokens[:, 0])
        if is_plain(key, value):
            cls = ops.class_attention(query, tokens, key.weight, key.bias, value.weight, value.bias, self.num_heads)
        else:
            cls, _ = reference.class_attention(query, key(tokens), value(tokens), self.num_heads)
        out: Tensor = self.proj(cls)
        return out


_BRANCHES = (XCA, LPI, MLP)


class XCABlock(NotScripted, nn.Module):
    """A block of three residual branches: XCA, then LPI, then MLP, for tokens (B, N, D).

    The input of each branch is the tokens after a norm. The output of each branch is multiplied by a learned vector
    (LayerScale) and added to the tokens.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        qkv_bias: bool,
        layer_scale: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.drop_path_rate, self.layer_scale = drop_path_rate, layer_scale
        self.norm_xca = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.xca = XCA(embed_dim, num_heads, qkv_bias)
        self.scale_xca = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_lpi = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.lpi = LPI(embed_dim)
        self.scale_lpi = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_mlp = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim, hidden_dim)
        self.scale_mlp = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def reset_parameters(self) -> None:
        """Sets the LayerScale vectors to their initial value. The layers have their own `reset_parameters`."""
        for scale in (self.scale_xca, self.scale_lpi, self.scale_mlp):
            nn.init.constant_(scale, self.layer_scale)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        refuse_symbols(tokens)
        # If LayerScale is inside a branch, it multiplies the weights of the last layer. If it is outside the branch, it
        # multiplies N x D activations, and autograd stores these for the backward pass. In float16, LayerScale is
        # outside, because float16 can't represent the multiplied weights, for example 1e-5 times 0.02.
        may_scale_inside = not computes_in_float16(tokens)
        tokens = self._add(tokens, self.xca, (self.norm_xca(tokens),), self.scale_xca, may_scale_inside)
        tokens = self._add(tokens, self.lpi, (self.norm_lpi(tokens), height, width), self.scale_lpi, may_scale_inside)
        return self._add(tokens, self.mlp, (self.norm_mlp(tokens),), self.scale_mlp, may_scale_inside)

    def _add(
        self,
        tokens: Tensor,
        branch: nn.Module,
        inputs: tuple[Tensor | int, ...],
        scale: Tensor,
        may_scale_inside: bool,
    ) -> Tensor:
        # A hook on the branch must get the output before LayerScale.
        is_inside = may_scale_inside and isinstance(branch, _BRANCHES) and not is_watched(branch) and branch.is_direct
        added = branch(*inputs, scale) if is_inside else scale * branch(*inputs)
        return tokens + ops.drop_path(added, self.drop_path_rate, self.training)


class ClassAttentionBlock(NotScripted, nn.Module):
    """A block with class attention, then an MLP on the class token, for tokens (B, 1+N, D) with the class token first.

    The patch tokens change too, as in the authors' code: the first residual connection adds the scaled output of the
    norm to the patch tokens, and the second residual connection doubles them. If `only_class` is true, the patch tokens
    after the block are not computed, and the result is only the class token (B, 1, D).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        qkv_bias: bool,
        layer_scale: float,
        tokens_norm: bool,
    ) -> None:
        super().__init__()
        self.tokens_norm, self.layer_scale = tokens_norm, layer_scale
        self.norm_attn = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = ClassAttention(embed_dim, num_heads, qkv_bias)
        self.scale_attn = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_mlp = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim, hidden_dim)
        self.scale_mlp = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def reset_parameters(self) -> None:
        """Sets the LayerScale vectors to their initial value. The layers have their own `reset_parameters`."""
        for scale in (self.scale_attn, self.scale_mlp):
            nn.init.constant_(scale, self.layer_scale)

    def forward(self, tokens: Tensor, only_class: bool = False) -> Tensor:
        refuse_symbols(tokens)
        normed = self.norm_attn(tokens)
        attended = self.attn(normed)[:, None]
        if only_class:
            cls = self.norm_mlp(tokens[:, :1] + self.scale_attn * attended)
            return cls + self.scale_mlp * self.mlp(cls)
        tokens = tokens + self.scale_attn * torch.cat([attended, normed[:, 1:]], dim=1)
        # If `tokens_norm` is true, the second norm is applied to all tokens. In nano models it is false, and the norm
        # is applied only to the class token.
        if self.tokens_norm:
            tokens = self.norm_mlp(tokens)
            cls, patches = tokens[:, :1], tokens[:, 1:]
        else:
            cls, patches = self.norm_mlp(tokens[:, :1]), tokens[:, 1:]
        return torch.cat([cls + self.scale_mlp * self.mlp(cls), patches + patches], dim=1)


FX_LEAF_MODULES = (PositionCode, XCABlock, ClassAttentionBlock)
"""Types of modules that `torch.fx` must not trace into (leaf modules).

For example, torchvision's `create_feature_extractor` accepts them in `tracer_kwargs` under the key "leaf_modules".
"""
