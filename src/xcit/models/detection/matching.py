"""Matches boxes to the objects that are their training targets, and samples the boxes to train on."""

import torch
from torch import Tensor

BACKGROUND, IN_BETWEEN = -1, -2
"""Values for a box that is not matched to an object: background, or ignored in training."""


def match(boxes: Tensor, objects: Tensor, *, positive: float, negative: float, lowest: float) -> Tensor:
    """Matches each box to an object by intersection over union (IoU).

    A box is matched to the object with the largest IoU if this IoU is at least `positive`. If this IoU is below
    `negative`, the box is background; otherwise the box is ignored. Then each object whose largest IoU is at least
    `lowest` is matched to all boxes with that IoU, even if they were matched to another object. If two such objects
    have the same box, it is matched to the later object.

    Args:
        boxes: (n, 4).
        objects: (m, 4), each with an area above 0.
        positive: IoU threshold of objects.
        negative: IoU threshold of background.
        lowest: IoU threshold of the second step.

    Returns:
        (n,), the object's index, `BACKGROUND` or `IN_BETWEEN`.
    """
    from torchvision.ops import box_iou

    matched = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    if not len(objects) or not len(boxes):
        return matched
    overlaps = box_iou(objects, boxes)
    best, best_object = overlaps.max(dim=0)
    matched[best >= negative] = IN_BETWEEN
    is_positive = best >= positive
    matched[is_positive] = best_object[is_positive]
    for index, (own, highest) in enumerate(zip(overlaps, overlaps.max(dim=1).values.tolist(), strict=True)):
        if highest >= lowest:
            matched[own == highest] = index
    return matched


def sample(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Draws boxes to train on, from torch's global generator.

    Args:
        matched: (n,), from `match`.
        count: number of boxes to draw; fewer are drawn if there are not enough.
        positive_share: largest share of boxes that are matched to an object. If there are fewer of them, more
            background is drawn.

    Returns:
        Indices of boxes that are matched to an object, and indices of background boxes.
    """
    positive = _draw((matched >= 0).nonzero().squeeze(1), int(count * positive_share))
    return positive, _draw((matched == BACKGROUND).nonzero().squeeze(1), count - len(positive))


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
