"""The operators of XCiT as the paper (arXiv 2106.09681) defines them. Tests compare all faster forms with them.

Shapes: `B` batch, `H`, `W` token grid, `N = H*W` tokens, `D` width, `M` heads, `C = D/M` channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

POSITION_DIM = 32
"""Number of channels of the Fourier code for one of the two axes of the token grid."""

POSITION_TEMPERATURE = 10000.0


def xca(
    tokens: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    temperature: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
) -> Tensor:
    """Computes cross-covariance attention (paper, section 3.2), in which channels attend to channels.

    Queries and keys are L2-normalised over the tokens, so their products are C x C cosines per head. These
    cosines are multiplied by a learned temperature and by no other factor. Then the softmax is applied.

    Args:
        tokens: (B, N, D).
        qkv_weight: (3D, D): the first D rows are for queries, the next D rows for keys, the last D rows for values.
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
    """Computes the attention of the class token over all tokens.

    See the paper, section 3.3, and CaiT (arXiv 2103.17239), section 3.

    Args:
        query: (B, D), the query of the class token.
        key: (B, N, D), the keys of all tokens.
        value: (B, N, D), the values of all tokens.
        num_heads: number of heads M.

    Returns:
        The output for the class token (B, D), and the attention weights (B, M, N), which sum to 1 over the N tokens.
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
    """Computes local patch interaction (paper, section 3.3): depthwise 3x3 convolution, GELU, norm, second convolution.

    Args:
        image: the tokens in the layout of an image (B, D, H, W).
        conv1_weight: (D, 1, 3, 3).
        conv1_bias: (D,).
        norm: batch norm of D channels. This argument is a module, because in training a batch norm updates its running
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
    """Computes the Fourier code of the positions along one axis of the token grid.

    With n = `length`, position i from 1 to n becomes the angle i / (n + 1e-6) * 2 pi. So the last position has an angle
    near 2 pi for every n, and the code works for grids of any size. For each pair of channels, the angle is divided by
    a power of `POSITION_TEMPERATURE`. The channels are the sine and the cosine of the result. The published weights
    depend on the order of the channels and on the constant 1e-6.

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
    """Applies stochastic depth (arXiv 1603.09382) to the output of a residual branch (B, ...).

    In training, the output for each image is set to 0 with probability `rate`, and otherwise divided by 1 - rate. So
    the expected output does not change. Outside training, the output does not change.
    """
    if rate == 0.0 or not training:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - rate)
    return branch * (kept / (1 - rate))
