"""Computes the logits of segmenters, at stride 4, a few rows at a time. No whole map has to fit into memory.

The logits equal those of the heads in `segmentation.py` up to rounding. The batch norms of the heads must be folded
into the convolutions first: see `ConvNormReLU.fold_norm`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from xcit.models.conv_of_resized import ConvOfResizedRows
from xcit.models.map_rows import ConvRows, MapRows, NearestRows, ResizedRows, SumRows, TensorRows, lateral_rows
from xcit.models.stripes import spans, sum_dtype

if TYPE_CHECKING:
    from xcit.models.segmentation import ConvNormReLU, FPNNeck, SemanticFPNHead, UperNetHead


def upernet_rows(head: "UperNetHead", maps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
    """Returns UperNet's logits as a map that is computed a few rows at a time.

    Args:
        head: the head, with folded batch norms.
        maps: the pyramid's maps of strides 4, 8, 16 and 32.
        pooled: for each size in `POOL_SIZES`, the coarsest map pooled to (size, size, D).
    """
    laterals = zip(_layers(head.laterals), maps, strict=False)
    levels: list[MapRows] = [lateral_rows(one, layer.conv, torch.relu_) for layer, one in laterals]
    levels.append(_pooled_level(head, maps[-1], pooled))
    for index in reversed(range(1, len(levels))):
        finer = levels[index - 1]
        levels[index - 1] = SumRows(finer, ResizedRows(levels[index], (finer.height, finer.width)))
    smoothed = [_conv(layer, level) for layer, level in zip(_layers(head.smooths), levels, strict=False)]
    finest = smoothed[0]
    size = (finest.height, finest.width)
    fused = ConvOfResizedRows(finest, [*smoothed[1:], levels[-1]], size, head.fusion.conv, torch.relu_)
    return ConvRows(fused, head.classifier)


def _pooled_level(head: "UperNetHead", coarsest: MapRows, pooled: Sequence[Tensor]) -> MapRows:
    """Returns the result of pyramid pooling as a map that is computed a few rows at a time.

    The values equal those of `UperNetHead._pooled` up to rounding.

    Args:
        head: the head, with folded batch norms.
        coarsest: the pyramid's coarsest map.
        pooled: for each size in `POOL_SIZES`, the coarsest map pooled to (size, size, D).
    """
    context = []
    for layer, means in zip(_layers(head.pools), pooled, strict=True):
        one = _conv(layer, TensorRows(means))
        context.append(TensorRows(one.read(0, one.height)))
    size = (coarsest.height, coarsest.width)
    return ConvOfResizedRows(coarsest, context, size, head.bottleneck.conv, torch.relu_)


def semantic_fpn_rows(neck: "FPNNeck", head: "SemanticFPNHead", maps: Sequence[MapRows]) -> MapRows:
    """Returns Semantic FPN's logits as a map that is computed a few rows at a time.

    Args:
        neck: the feature pyramid network.
        head: the head, with folded batch norms.
        maps: the pyramid's maps of strides 4, 8, 16 and 32.
    """
    levels: list[MapRows] = [
        lateral_rows(one, cast(nn.Conv2d, layer)) for layer, one in zip(neck.laterals, maps, strict=True)
    ]
    for index in reversed(range(1, len(levels))):
        finer = levels[index - 1]
        levels[index - 1] = SumRows(finer, NearestRows(levels[index], (finer.height, finer.width)))
    smoothed = [ConvRows(level, cast(nn.Conv2d, layer)) for layer, level in zip(neck.smooths, levels, strict=True)]
    total: MapRows | None = None
    for convs, level in zip(head.levels, smoothed, strict=True):
        first, *others = _layers(cast(nn.ModuleList, convs))
        found: MapRows = _conv(first, level)
        for conv in others:
            size = (2 * found.height, 2 * found.width)
            found = ConvOfResizedRows(None, [found], size, conv.conv, torch.relu_)
        if total is None:
            total = found
        else:
            doubled = ResizedRows(found, (2 * found.height, 2 * found.width))
            size = (total.height, total.width)
            is_alike = (doubled.height, doubled.width) == size
            total = SumRows(total, doubled if is_alike else ResizedRows(doubled, size))
    assert total is not None
    return ConvRows(total, head.classifier)


def pooled_means(source: MapRows, sizes: Sequence[int], rows_at_once: int) -> list[Tensor]:
    """Computes adaptive average pooling of a map to several sizes in one pass over its rows.

    Sums are computed in float64 if the device supports it, so that rounding errors stay small in very large maps.

    Args:
        source: the map, with C channels.
        sizes: sizes of the results in pixels per side.
        rows_at_once: number of rows of the map that are read at once.

    Returns:
        One tensor (size, size, C) per size.
    """
    totals: list[Tensor] | None = None
    for start, end in spans(source.height, rows_at_once):
        rows = source.read(start, end)
        wide = rows.to(sum_dtype(rows.device))
        if totals is None:
            totals = [wide.new_zeros(size, size, source.channels) for size in sizes]
            across, down = ([averaging(side, size, wide) for size in sizes] for side in (source.width, source.height))
        for total, columns, windows in zip(totals, across, down, strict=True):
            means = columns @ wide  # (k, size, C)
            total += (windows[:, start:end] @ means.flatten(1)).view_as(total)
    assert totals is not None
    return [total.to(rows.dtype) for total in totals]


def averaging(length: int, num_windows: int, like: Tensor) -> Tensor:
    """Returns the matrix (num_windows, length) that computes adaptive average pooling along one side of a map.

    Args:
        length: number of pixels of the side.
        num_windows: number of pixels of the side after pooling.
        like: a tensor with the device and the dtype of the result.
    """
    position = torch.arange(length, device=like.device)
    window = torch.arange(num_windows, device=like.device)[:, None]
    start, end = window * length // num_windows, ((window + 1) * length + num_windows - 1) // num_windows
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _conv(layer: "ConvNormReLU", source: MapRows) -> ConvRows:
    return ConvRows(source, layer.conv, torch.relu_)


def _layers(modules: nn.ModuleList) -> "list[ConvNormReLU]":
    return cast("list[ConvNormReLU]", [*modules])
