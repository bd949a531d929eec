"""The layers of XCiT: conv stem, position code, XCA, LPI, class attention, and the two blocks made of them.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads. No layer works in place.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops

NORM_EPS = 1e-6


class ConvNorm(nn.Module):
    """A 3x3 stride-2 convolution without bias, then batch normalisation: ceil(n/2) pixels a side come out."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(image))
        return out


class Stem(nn.Sequential):
    """Image (B, in_channels, h, w) to patches (B, D, H, W) by log2(patch_size) convolutions, GELU between them.

    Widths double up to D: D/8, D/4, D/2, D for patches of 16.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        num_convs = patch_size.bit_length() - 1
        widths = [in_channels] + [embed_dim >> i for i in reversed(range(num_convs))]
        super().__init__(*(ConvNorm(a, b) for a, b in pairwise(widths)))

    def forward(self, image: Tensor) -> Tensor:
        for i, layer in enumerate(self):
            image = layer(F.gelu(image) if i else image)
        return image


class PositionCode(nn.Module):
    """Fourier code of the token grid, projected to the width: (1, N, D) for any grid."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2 * ops.POSITION_DIM, embed_dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        y, x = self.code(height, width)
        return (y + x).flatten(0, 1)[None]

    def code(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Terms (H, 1, D) and (W, D) whose sum is the code of the grid."""
        weight, bias = self.projection.weight.flatten(1), self.projection.bias
        # The code of (y, x) is [code(y), code(x)], so its projection is a sum of one term a row and one a column:
        # H + W projections instead of H * W.
        weight_y, weight_x = weight.split(ops.POSITION_DIM, dim=1)
        y = F.linear(ops.fourier_position(height, weight.device).to(weight.dtype), weight_y)
        x = F.linear(ops.fourier_position(width, weight.device).to(weight.dtype), weight_x, bias)
        return y[:, None], x


def scaled(layer: nn.Linear | nn.Conv2d, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer whose outputs are multiplied by a vector (outputs,), if there is one."""
    assert layer.bias is not None
    if scale is None:
        return layer.weight, layer.bias
    return scale.view(-1, *[1] * (layer.weight.ndim - 1)) * layer.weight, scale * layer.bias


def computes_in_float16(tokens: Tensor) -> bool:
    """Whether products with the tokens are made in float16, by autocast or by their own type."""
    device = tokens.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) is torch.float16
    return tokens.dtype is torch.float16


class XCA(nn.Module):
    """Cross-covariance attention (paper, section 3.2) on tokens (B, N, D), its outputs multiplied by `scale` (D,)."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        weight, bias = scaled(self.proj, scale)
        return ops.xca(tokens, self.qkv.weight, self.qkv.bias, self.temperature, weight, bias)


class LPI(nn.Module):
    """Local patch interaction (paper, section 3.3) on tokens (B, N, D) of an H x W grid, multiplied by `scale` (D,)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)

    def forward(self, tokens: Tensor, height: int, width: int, scale: Tensor | None = None) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, (height, width))
        if image.device.type != "cpu":  # a CPU is fastest on channels last, as tokens lie
            image = image.contiguous()
        conv1 = self.conv1
        assert conv1.bias is not None
        image = ops.lpi(image, conv1.weight, conv1.bias, self.norm, *scaled(self.conv2, scale))
        return image.flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with GELU between, on each token alone, multiplied by `scale` (D,)."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        return F.linear(F.gelu(self.fc1(tokens)), *scaled(self.fc2, scale))


class ClassAttention(nn.Module):
    """Multi-head attention with one query, the class token: tokens (B, 1+N, D) to a class token (B, D)."""

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.v = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.k, self.v
        cls = ops.class_attention(
            self.q(tokens[:, 0]), tokens, key.weight, key.bias, value.weight, value.bias, self.num_heads
        )
        out: Tensor = self.proj(cls)
        return out


class XCABlock(nn.Module):
    """XCA, then LPI, then MLP, each behind a norm, scaled by a learned vector and added to its input."""

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
        self.drop_path_rate = drop_path_rate
        self.norm_xca = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.xca = XCA(embed_dim, num_heads, qkv_bias)
        self.scale_xca = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_lpi = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.lpi = LPI(embed_dim)
        self.scale_lpi = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_mlp = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim, hidden_dim)
        self.scale_mlp = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        tokens = self._add(tokens, partial(self.xca, self.norm_xca(tokens)), self.scale_xca)
        tokens = self._add(tokens, partial(self.lpi, self.norm_lpi(tokens), height, width), self.scale_lpi)
        return self._add(tokens, partial(self.mlp, self.norm_mlp(tokens)), self.scale_mlp)

    def _add(self, tokens: Tensor, branch: Callable[[Tensor | None], Tensor], scale: Tensor) -> Tensor:
        # Inside the branch LayerScale multiplies D x D weights; outside it would multiply N x D numbers and keep them
        # for the backward pass. float16 can't hold such a product: 1e-5 of a weight of 0.02.
        added = scale * branch(None) if computes_in_float16(tokens) else branch(scale)
        return tokens + ops.drop_path(added, self.drop_path_rate, self.training)


class ClassAttentionBlock(nn.Module):
    """Class attention, then MLP on the class token, on tokens (B, 1+N, D) with the class token first.

    The patch tokens move too, as in the code the published weights were trained with: the first residual adds their
    own norm to them, the second adds them to themselves. `only_class` leaves that out and gives the class token alone,
    (B, 1, D).
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
        self.tokens_norm = tokens_norm
        self.norm_attn = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.attn = ClassAttention(embed_dim, num_heads, qkv_bias)
        self.scale_attn = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.norm_mlp = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mlp = MLP(embed_dim, hidden_dim)
        self.scale_mlp = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def forward(self, tokens: Tensor, only_class: bool = False) -> Tensor:
        normed = self.norm_attn(tokens)
        attended = self.attn(normed)[:, None]
        if only_class:
            cls = self.norm_mlp(tokens[:, :1] + self.scale_attn * attended)
            return cls + self.scale_mlp * self.mlp(cls)
        tokens = tokens + self.scale_attn * torch.cat([attended, normed[:, 1:]], dim=1)
        # tokens_norm: the second norm covers all tokens, or (nano models) the class token only.
        if self.tokens_norm:
            tokens = self.norm_mlp(tokens)
            cls, patches = tokens[:, :1], tokens[:, 1:]
        else:
            cls, patches = self.norm_mlp(tokens[:, :1]), tokens[:, 1:]
        return torch.cat([cls + self.scale_mlp * self.mlp(cls), patches + patches], dim=1)
