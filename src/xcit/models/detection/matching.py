"""Which box is trained towards which object, and which boxes are trained at all."""

import torch
from torch import Tensor

BACKGROUND, IN_BETWEEN = -1, -2
"""What a box may be matched to where that is no object."""


def match(boxes: Tensor, objects: Tensor, *, positive: float, negative: float, lowest: float) -> Tensor:
    """Gives each box an object by the share of their union that they have in common (IoU).

    A box belongs to the object it overlaps most, if by `positive` or more; below `negative` it is background; between
    them it is ignored. Then each object whose best overlap is `lowest` or more takes all boxes that overlap it as much,
    wherever they belonged; a later object takes from an earlier one.

    Args:
        boxes: (n, 4).
        objects: (m, 4), all with an area.
        positive: IoU.
        negative: IoU.
        lowest: IoU.

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
        count: boxes to draw, fewer if there are no more.
        positive_share: of them that belong to an object at most; background takes the place of those that lack.

    Returns:
        Indices of boxes that belong to an object, and of background.
    """
    positive = _draw((matched >= 0).nonzero().squeeze(1), int(count * positive_share))
    return positive, _draw((matched == BACKGROUND).nonzero().squeeze(1), count - len(positive))


def _draw(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
