"""Functions for boxes (x1, y1, x2, y2) in pixels and for steps, with the rules of mmdetection.

Steps are box regression deltas (dx, dy, dw, dh): they describe how to move and resize one box to get another box.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_RATIO = abs(math.log(16 / 1000))
"""The largest absolute value of dw and dh, which are changes of the logarithms of the width and the height."""

_ONE_NMS = 1_000
"""Smallest number of boxes with which non-maximum suppression (NMS) runs on each class separately.

The time of NMS grows quadratically with the number of boxes.
"""


def encode_boxes(boxes: Tensor, targets: Tensor, std: Sequence[float]) -> Tensor:
    """Computes the steps (n, 4) from `boxes` (n, 4) to `targets` (n, 4), divided by the standard deviations `std`."""
    x, y, width, height = _centres(boxes)
    target_x, target_y, target_width, target_height = _centres(targets)
    steps = [
        (target_x - x) / width,
        (target_y - y) / height,
        (target_width / width).log(),
        (target_height / height).log(),
    ]
    return torch.stack(steps, dim=-1) / boxes.new_tensor(std)


def decode_boxes(boxes: Tensor, steps: Tensor, std: Sequence[float], size: tuple[int, int] | Tensor) -> Tensor:
    """Applies steps to boxes and clips the results to the image.

    dw and dh are clamped at both ends, as in mmdetection. Torchvision clamps them only at the upper end.

    Args:
        boxes: (n, 4), the boxes before the steps.
        steps: (n, ..., 4), divided by `std`, as `encode_boxes` returns them.
        std: standard deviations of dx, dy, dw and dh.
        size: height and width of the image without padding, as a tuple or a tensor (2,).

    Returns:
        The new boxes, (n, ..., 4).
    """
    dx, dy, dw, dh = (steps * steps.new_tensor(std)).unbind(-1)
    x, y, width, height = (part.view(-1, *[1] * (dx.ndim - 1)) for part in _centres(boxes))
    half_width = 0.5 * width * dw.clamp(-MAX_RATIO, MAX_RATIO).exp()
    half_height = 0.5 * height * dh.clamp(-MAX_RATIO, MAX_RATIO).exp()
    x, y = x + width * dx, y + height * dy
    decoded = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)
    return clip_boxes(decoded, size)


def clip_boxes(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Clips boxes (..., 4) to an image. `size` is the height and width of the image."""
    sides = size.to(boxes) if isinstance(size, Tensor) else boxes.new_tensor(size)
    return torch.minimum(boxes.clamp(min=0), sides.flip(0).repeat(2))


def nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    """Removes boxes that overlap a kept box of the same class with a higher score (non-maximum suppression, NMS).

    The boxes of each class are shifted so that boxes of different classes do not overlap. The shift rounds the
    coordinates a little. mmdetection uses the same shift, so the results equal those of the published models.

    Args:
        boxes: (n, 4).
        scores: (n,).
        classes: (n,), integers from 0.
        iou: threshold from 0 to 1. Two boxes overlap if their intersection over union (IoU) is above the threshold.

    Returns:
        Indices of the boxes that are kept, in descending order of their scores.
    """
    from torchvision.ops import nms

    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    apart = boxes + (classes.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < _ONE_NMS:
        kept: Tensor = nms(apart, scores, iou)
        return kept
    parts = []
    for number in classes.unique():
        own = (classes == number).nonzero().squeeze(1)
        parts.append(own[nms(apart[own], scores[own], iou)])
    kept = torch.cat(parts).sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns centre x, centre y, width and height of boxes (n, 4), each (n,)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) * 0.5, (y1 + y2) * 0.5, x2 - x1, y2 - y1
