"""The layers of XCiT: conv stem, position code, XCA, LPI, class attention, and the two blocks made of them.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads. No layer works in place.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit import ops
from xcit.models.plain import is_plain, is_watched
from xcit.ops import reference

NORM_EPS = 1e-6


class ConvNorm(nn.Module):
    """A 3x3 convolution without bias, then batch normalisation: ceil(n/stride) pixels a side come out."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(image))
        return out


class Stem(nn.Sequential):
    """Image (B, in_channels, h, w) to patches (B, D, H, W) by a convolution for each stride, GELU between them.

    Widths double up to D: D/8, D/4, D/2, D of four convolutions.
    """

    def __init__(self, in_channels: int, embed_dim: int, strides: Sequence[int]) -> None:
        widths = [in_channels] + [embed_dim >> i for i in reversed(range(len(strides)))]
        super().__init__(*(ConvNorm(a, b, stride) for (a, b), stride in zip(pairwise(widths), strides, strict=True)))

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
        if is_plain(self.projection):
            y, x = self.code(height, width)
            return (y + x).flatten(0, 1)[None]
        device = next(self.projection.parameters()).device
        y, x = ops.fourier_position(height, device), ops.fourier_position(width, device)
        code = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=2)  # (H, W, 2 * 32)
        projected: Tensor = self.projection(code.permute(2, 0, 1)[None].to(_float_of(self.projection)))
        return projected.flatten(2).transpose(1, 2)

    def code(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Terms (H, 1, D) and (W, D) whose sum is the code of the grid."""
        weight, bias = self.projection.weight.flatten(1), self.projection.bias
        # The code of (y, x) is [code(y), code(x)], so its projection is a sum of one term a row and one a column:
        # H + W projections instead of H * W.
        weight_y, weight_x = weight.split(ops.POSITION_DIM, dim=1)
        y = F.linear(ops.fourier_position(height, weight.device).to(weight.dtype), weight_y)
        x = F.linear(ops.fourier_position(width, weight.device).to(weight.dtype), weight_x, bias)
        return y[:, None], x


def _float_of(layer: nn.Module) -> torch.dtype:
    """The precision that a layer computes in, whatever stands in the place of its weight."""
    return next((value.dtype for value in layer.parameters() if value.is_floating_point()), torch.float32)


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
    """Cross-covariance attention (paper, section 3.2) on tokens (B, N, D).

    Where `is_direct`, its outputs can be multiplied by `scale` (D,) within its weights.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    @property
    def is_direct(self) -> bool:
        """Whether it may be computed from the weights of its layers."""
        return is_plain(self.qkv, self.proj)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is not None or self.is_direct:
            weight, bias = scaled(self.proj, scale)
            return ops.xca(tokens, self.qkv.weight, self.qkv.bias, self.temperature, weight, bias)
        out: Tensor = self.proj(ops.xca_of_qkv(self.qkv(tokens), self.temperature))
        return out


class LPI(nn.Module):
    """Local patch interaction (paper, section 3.3) on tokens (B, N, D) of an H x W grid.

    Where `is_direct`, its outputs can be multiplied by `scale` (D,) within its weights.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.conv2 = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim)

    @property
    def is_direct(self) -> bool:
        """Whether it may be computed from the weights of its layers."""
        return is_plain(self.conv1, self.conv2)

    def forward(self, tokens: Tensor, height: int, width: int, scale: Tensor | None = None) -> Tensor:
        image = tokens.transpose(1, 2).unflatten(2, (height, width))
        if image.device.type != "cpu":  # a CPU is fastest on channels last, as tokens lie
            image = image.contiguous()
        conv1 = self.conv1
        if scale is not None or self.is_direct:
            assert conv1.bias is not None
            image = ops.lpi(image, conv1.weight, conv1.bias, self.norm, *scaled(self.conv2, scale))
        else:
            image = self.conv2(self.norm(F.gelu(conv1(image))))
        return image.flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with GELU between, on each token alone.

    Where `is_direct`, its outputs can be multiplied by `scale` (D,) within its weights.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    @property
    def is_direct(self) -> bool:
        """Whether its last layer may be computed from its weights."""
        return is_plain(self.fc2)

    def forward(self, tokens: Tensor, scale: Tensor | None = None) -> Tensor:
        hidden = F.gelu(self.fc1(tokens))
        if scale is not None:
            return F.linear(hidden, *scaled(self.fc2, scale))
        out: Tensor = self.fc2(hidden)
        return out


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
        query = self.q(tokens[:, 0])
        if is_plain(key, value):
            cls = ops.class_attention(query, tokens, key.weight, key.bias, value.weight, value.bias, self.num_heads)
        else:
            cls, _ = reference.class_attention(query, key(tokens), value(tokens), self.num_heads)
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
        tokens = self._add(tokens, self.xca, (self.norm_xca(tokens),), self.scale_xca)
        tokens = self._add(tokens, self.lpi, (self.norm_lpi(tokens), height, width), self.scale_lpi)
        return self._add(tokens, self.mlp, (self.norm_mlp(tokens),), self.scale_mlp)

    def _add(self, tokens: Tensor, branch: nn.Module, inputs: tuple[Tensor | int, ...], scale: Tensor) -> Tensor:
        # Inside the branch LayerScale multiplies D x D weights; outside it would multiply N x D numbers and keep them
        # for the backward pass. float16 can't hold such a product: 1e-5 of a weight of 0.02. Who listens to the branch
        # gets its output before LayerScale.
        is_inside = (
            isinstance(branch, XCA | LPI | MLP)
            and not is_watched(branch)
            and branch.is_direct
            and not computes_in_float16(tokens)
        )
        added = branch(*inputs, scale) if is_inside else scale * branch(*inputs)
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
