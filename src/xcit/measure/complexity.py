"""Counts a model's parameters and its FLOPs: by the rule of the published figures, and by torch's counter.

In the code, `height` and `width` are sides of the image, and then of the map after each stem layer; `dim` is the width
D of the tokens.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from xcit.models import XCiT, XCiTConfig
from xcit.models.layers import ConvNorm
from xcit.ops import POSITION_DIM

KERNEL_AREA = 9  # every convolution except the projection of the position code has a 3x3 kernel

# Numbers of operations per element of a norm, in the published rule. A multiply-accumulate is one operation.
LAYER_NORM_COST = 5
BATCH_NORM_COST = 2


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Size and cost of a model for one image.

    Attributes:
        params: number of learned parameters, including the head.
        flops: FLOPs by the published rule: 1 per multiply-accumulate of convolutions, linear layers and attention, 5
            per element of a layer norm, and 2 per element of a batch norm. The head is not counted.
        torch_flops: FLOPs of a forward pass by `torch.utils.flop_counter`: 2 per multiply-accumulate of matrix products
            and convolutions. The head is counted; norms are not.
        image_size: height and width in pixels.
        num_tokens: N, the number of patches of the image.
    """

    params: int
    flops: int
    torch_flops: int
    image_size: tuple[int, int]
    num_tokens: int


def complexity(model: XCiT | XCiTConfig, image_size: int | tuple[int, int] = 224) -> Complexity:
    """Counts parameters and FLOPs in about a second, even for the largest model, because no tensors are allocated.

    Args:
        model: a model or its config; only the config is used.
        image_size: side of a square image, or height and width, in pixels.

    Raises:
        XCiTError: if the image is smaller than one patch.
    """
    config = model.config if isinstance(model, XCiT) else model
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.device("meta"), torch.no_grad():
        outline = XCiT(config).eval()
        with FlopCounterMode(display=False) as counter:
            outline(torch.empty(1, config.in_channels, height, width))
    flops, num_tokens = _published_flops(outline, height, width)
    return Complexity(
        params=sum(parameter.numel() for parameter in outline.parameters()),
        flops=flops,
        torch_flops=counter.get_total_flops(),
        image_size=(height, width),
        num_tokens=num_tokens,
    )


def fitted_exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Fits a power law y = a * x^b to points (x, y), and returns the exponent b.

    The fit is a linear regression of log y on log x, so all numbers must be positive. The result is None if there are
    fewer than two different values of x.
    """
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)).slope


def _published_flops(model: XCiT, height: int, width: int) -> tuple[int, int]:
    """Returns the FLOPs by the published rule, and the number of tokens, for an image of height x width pixels."""
    config = model.config
    dim = config.embed_dim
    stem = 0
    for layer in model.stem:
        assert isinstance(layer, ConvNorm)
        stride = layer.conv.stride[0]
        height, width = -(-height // stride), -(-width // stride)
        per_channel = KERNEL_AREA * layer.conv.in_channels + BATCH_NORM_COST
        stem += per_channel * layer.conv.out_channels * height * width
    num_tokens = height * width
    # The rule counts the projection of the position code for every token, even where the model needs less computation.
    position = 2 * POSITION_DIM * dim * num_tokens
    flops = stem + position + config.depth * _xca_block_flops(config, num_tokens)
    if config.cls_depth:
        final_norm = LAYER_NORM_COST * dim * (1 + num_tokens)
        flops += config.cls_depth * _class_attention_block_flops(config, 1 + num_tokens) + final_norm
    return flops, num_tokens


def _xca_block_flops(config: XCiTConfig, num_tokens: int) -> int:
    dim = config.embed_dim
    norms = 3 * LAYER_NORM_COST * dim
    linear = 4 * dim * dim  # queries, keys, values, output
    attention = 2 * dim * (dim // config.num_heads)  # query x key and attention x value
    lpi = dim * (2 * KERNEL_AREA + BATCH_NORM_COST)
    mlp = 2 * dim * config.hidden_dim
    return num_tokens * (norms + linear + attention + lpi + mlp)


def _class_attention_block_flops(config: XCiTConfig, num_tokens: int) -> int:
    """Returns the FLOPs of a class attention block on `num_tokens` tokens, including the class token."""
    dim = config.embed_dim
    norms = LAYER_NORM_COST * dim * (num_tokens + (num_tokens if config.tokens_norm else 1))
    keys_values = 2 * dim * dim * num_tokens
    query_output = 2 * dim * dim  # the projections of query and output, only for the class token
    attention = 2 * dim * num_tokens
    mlp = 2 * dim * config.hidden_dim
    return norms + keys_values + query_output + attention + mlp
