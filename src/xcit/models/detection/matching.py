"""Matches boxes to the objects that are their training targets, and samples the boxes to train on."""

import torch
from torch import Tensor

BACKGROUND, IN_BETWEEN = -1, -2
"""Results of `match` for a box without an object: `BACKGROUND`, or `IN_BETWEEN` if training ignores the box."""


def match(boxes: Tensor, objects: Tensor, *, positive: float, negative: float, lowest: float) -> Tensor:
    """Matches each box to an object by intersection over union (IoU).

    The first step finds, for each box, the object with the largest IoU. If this IoU is at least `positive`, the box is
    matched to the object. If this IoU is below `negative`, the box is background. Otherwise, the box is ignored.

    The second step finds, for each object, the boxes with the largest IoU. If this IoU is at least `lowest`, these
    boxes are matched to the object, even if the first step matched them to another object. If the second step finds the
    same box for two objects, the box is matched to the later object.

    Args:
        boxes: (n, 4).
        objects: (m, 4), each with an area above 0.
        positive: smallest IoU for a match in the first step.
        negative: IoU below which a box is background.
        lowest: smallest IoU for a match in the second step.

    Returns:
        (n,), for each box the index of its object, `BACKGROUND`, or `IN_BETWEEN` if the box is ignored.
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
    """Draws boxes for training at random, with torch's global generator.

    Args:
        matched: (n,), the result of `match`.
        count: number of boxes to draw. Fewer boxes are drawn if there are not enough.
        positive_share: maximum share of boxes with an object among the drawn boxes. If there are fewer boxes with an
            object, more background boxes are drawn.

    Returns:
        The indices of the drawn boxes with an object, and the indices of the drawn background boxes.
    """
    positive = _draw((matched >= 0).nonzero().squeeze(1), int(count * positive_share))
    return positive, _draw((matched == BACKGROUND).nonzero().squeeze(1), count - len(positive))


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
