"""Masks of objects. The network predicts a mask as a small square of probabilities over the box of the object.

In inference, masks are pasted: each mask is resized to its box and put into the image. In training, each object has a
mask with the size of the image, and a target with the size of the small square is computed from this mask.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 2**22
"""Maximum number of pixels in one part of a pasted mask."""


class PastedMask(NamedTuple):
    """A pasted mask, or a part of it: the probabilities for a rectangle of the image, and the rectangle's position."""

    top: int
    left: int
    probabilities: Tensor  # (height, width)


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> PastedMask:
    """Resizes a mask to its box, by bilinear interpolation between the centres of the mask's pixels, with zero padding.

    Args:
        mask: (s, s) probabilities.
        box: (4,), (x1, y1, x2, y2) in pixels of the image.
        size: height and width of the image.

    Returns:
        The probabilities for the pixels of the box and for one more pixel on each side, clipped to the image. For all
        other pixels, the probability is 0. A pixel belongs to the object if its probability is 0.5 or more.
    """
    (part,) = paste_columns(mask, box, size, max(1, size[1]) * max(1, size[0]))
    return part


def paste_columns(
    mask: Tensor, box: Tensor, size: tuple[int, int], pixels_at_once: int = PIXELS_AT_ONCE
) -> Iterator[PastedMask]:
    """Resizes a mask to its box, as `paste_mask` does, but yields the result in parts from left to right.

    A part consists of whole columns. It has at most `pixels_at_once` pixels, or is a single column.
    """
    top, bottom, left, right = mask_window(box, size)
    y = _places(torch.arange(top, bottom, device=box.device), box[1], box[3])
    columns_at_once = max(1, pixels_at_once // max(1, bottom - top))
    for first in range(left, max(right, left + 1), columns_at_once):
        last = min(first + columns_at_once, right)
        x = _places(torch.arange(first, last, device=box.device), box[0], box[2])
        grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)
        if not grid.numel():
            yield PastedMask(top, first, mask.new_zeros(grid.shape[:2]))
        else:
            yield PastedMask(top, first, F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0])


def mask_window(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the part of an image in which the mask of a box may be above 0.

    Returns:
        Top, bottom (exclusive), left and right (exclusive), in pixels.
    """
    x1, y1, x2, y2 = box.tolist()
    return (*_span(y1, y2, size[0]), *_span(x1, x2, size[1]))


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pastes masks (n, s, s) into their boxes (n, 4). Returns probabilities for whole images, (n, 1, height, width)."""
    images = masks.new_zeros(len(masks), 1, *size)
    for image, mask, box in zip(images, masks, boxes, strict=True):
        top, left, probabilities = paste_mask(mask, box, size)
        height, width = probabilities.shape
        image[0, top : top + height, left : left + width] = probabilities
    return images


def mask_targets(masks: Tensor, boxes: Tensor, chosen: Tensor, size: int) -> Tensor:
    """Computes the targets of the mask head.

    For each box, RoIAlign is applied to the mask of the box's object. Values of 0.5 or more become 1, other values 0.

    Args:
        masks: masks of the objects in one image, (objects, height, width), 0 or 1.
        boxes: (n, 4) in pixels of the image.
        chosen: (n,), for each box the index of the box's object.
        size: side s of a target in pixels.

    Returns:
        (n, s, s), 0 or 1.
    """
    from torchvision.ops import roi_align

    if not len(boxes):
        return boxes.new_zeros(0, size, size)
    height, width = masks.shape[-2:]
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    # RoIAlign runs on one object's mask at a time, because a batch would need a copy of the whole mask for each box.
    targets = boxes.new_zeros(len(boxes), size, size)
    for number in chosen.unique():
        own = (chosen == number).nonzero().squeeze(1)
        mask = masks[number][None, None].to(boxes.dtype)
        targets[own] = roi_align(mask, [boxes[own]], size, 1.0, sampling_ratio=0, aligned=True)[:, 0]
    return (targets >= 0.5).to(boxes.dtype)


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """Returns the index of a box's first pixel along one axis, and one past the index of the last pixel.

    The box is extended by one pixel on each side, and clipped to the `length` pixels of the image.
    """
    first = min(max(math.floor(low) - 1, 0), length)
    last = min(max(math.ceil(high) + 1, first), length)
    return first, last


def _places(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns the positions of the pixels' centres relative to a box along one axis.

    A position is -1 at the edge `low` of the box and 1 at the edge `high`. If the box has no extent, all positions
    are 0.
    """
    places = (pixels.to(low.dtype) + 0.5 - low) / (high - low) * 2 - 1
    return torch.where(places.isfinite(), places, torch.zeros_like(places))
