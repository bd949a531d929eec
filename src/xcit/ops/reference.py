"""The operators of XCiT as the paper defines them. Every faster form is tested against these.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads, `C = D/M` channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_DIM = 32
"""Number of channels of the Fourier code for each of the two axes."""

POSITION_TEMPERATURE = 10000.0


def xca(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Cross-covariance attention (paper, section 3.2): channels attend to channels.

    Queries and keys are L2-normalised over the tokens, so a head's attention is a C x C matrix of cosines times a
    learned temperature, with no further scale.

    Args:
        tokens: (B, N, D).
        qkv_weight: (3D, D), the rows of queries, keys and values in this order.
        qkv_bias: (3D,) or None.
        temperature: (M, 1, 1), one learned factor per head.
        proj_weight: (D, D).
        proj_bias: (D,).

    Returns:
        (B, N, D).
    """
    batch, num_tokens, dim = tokens.shape
    num_heads = temperature.shape[0]
    qkv = F.linear(tokens, qkv_weight, qkv_bias)
    qkv = qkv.reshape(batch, num_tokens, 3, num_heads, dim // num_heads).permute(2, 0, 3, 4, 1)
    query, key, value = qkv.unbind(0)  # each (B, M, C, N)
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    attention = (query @ key.transpose(-2, -1) * temperature).softmax(dim=-1)  # (B, M, C, C)
    mixed = (attention @ value).permute(0, 3, 1, 2).reshape(batch, num_tokens, dim)
    return F.linear(mixed, proj_weight, proj_bias)


def class_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Attention of the class token over all tokens (CaiT, arXiv 2103.17239, section 3; the paper's section 3.3).

    Args:
        query: (B, D), from the class token.
        key: (B, N, D).
        value: (B, N, D).
        num_heads: M.

    Returns:
        The class token's new value (B, D) and the attention over the tokens (B, M, N), whose rows sum to 1.
    """
    batch, num_tokens, dim = key.shape
    head_dim = dim // num_heads
    query = query.reshape(batch, num_heads, 1, head_dim) * head_dim**-0.5
    key = key.reshape(batch, num_tokens, num_heads, head_dim).permute(0, 2, 3, 1)
    value = value.reshape(batch, num_tokens, num_heads, head_dim).transpose(1, 2)
    attention = (query @ key).softmax(dim=-1)  # (B, M, 1, N)
    return (attention @ value).reshape(batch, dim), attention.squeeze(2)


def lpi(
    image: Tensor,
    conv1_weight: Tensor,
    conv1_bias: Tensor,
    norm: torch.nn.Module,
    conv2_weight: Tensor,
    conv2_bias: Tensor,
) -> Tensor:
    """Local patch interaction (paper, section 3.3): two depthwise 3x3 convolutions with GELU and a norm between.

    Args:
        image: the tokens as an image (B, D, H, W).
        conv1_weight: (D, 1, 3, 3).
        conv1_bias: (D,).
        norm: batch normalisation over D channels. It is a module, because in training it updates its running
            statistics.
        conv2_weight: (D, 1, 3, 3).
        conv2_bias: (D,).

    Returns:
        (B, D, H, W).
    """
    dim = image.shape[1]
    image = F.conv2d(image, conv1_weight, conv1_bias, padding=1, groups=dim)
    image = norm(F.gelu(image))
    return F.conv2d(image, conv2_weight, conv2_bias, padding=1, groups=dim)


def fourier_position(length: int, device: torch.device | None = None) -> Tensor:
    """Fourier code of the positions along one axis of the token grid.

    Position i, from 1 to n, becomes the angle i / (n + 1e-6) * 2 pi. The last position is thus near 2 pi for any n, and
    the code works for any size of the grid. The published weights depend on the epsilon, and on the order of the
    result, in which sines and cosines alternate.

    Args:
        length: number of tokens along the axis.
        device: device of the result.

    Returns:
        (length, POSITION_DIM), float32.
    """
    index = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    angle = index / (index[-1:] + 1e-6) * (2 * torch.pi)
    exponent = torch.arange(0, POSITION_DIM, 2, device=device, dtype=torch.float32) / POSITION_DIM
    angles = angle[:, None] / POSITION_TEMPERATURE**exponent
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops a residual branch (B, ...) for a whole sample with probability `rate` in training.

    A branch that is kept is divided by 1 - rate, so the expectation does not change (arXiv 1603.09382).
    """
    if rate == 0.0 or not training:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - rate)
    return branch * (kept / (1 - rate))
