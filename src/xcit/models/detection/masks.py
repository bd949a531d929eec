"""Masks: small squares of probabilities, pasted into the image at inference, cut out of it for training."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 2**22
"""Of a mask that is pasted into a large image."""


class PastedMask(NamedTuple):
    """The part of an image where a mask may be: outside of it the probability is 0."""

    top: int
    left: int
    probabilities: Tensor  # (height, width)


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> PastedMask:
    """Stretches a mask over its box, bilinearly between the centres of its pixels, zero around it.

    Args:
        mask: (s, s) probabilities.
        box: (4,) in pixels of the image.
        size: height and width of the image.

    Returns:
        The probabilities of the box's pixels and of one more on each side, within the image. The object is where they
        are 0.5 or more.
    """
    (part,) = paste_columns(mask, box, size, max(1, size[1]) * max(1, size[0]))
    return part


def paste_columns(
    mask: Tensor, box: Tensor, size: tuple[int, int], pixels_at_once: int = PIXELS_AT_ONCE
) -> Iterator[PastedMask]:
    """As `paste_mask`, in parts side by side of at most so many pixels, or one column, from the left to the right."""
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
    """Where the mask of a box may be: first row and the one after the last, likewise of columns."""
    x1, y1, x2, y2 = box.tolist()
    return (*_span(y1, y2, size[0]), *_span(x1, x2, size[1]))


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (n, 1, height, width) of whole images from masks (n, s, s) and boxes (n, 4)."""
    images = masks.new_zeros(len(masks), 1, *size)
    for image, mask, box in zip(images, masks, boxes, strict=True):
        top, left, probabilities = paste_mask(mask, box, size)
        height, width = probabilities.shape
        image[0, top : top + height, left : left + width] = probabilities
    return images


def mask_targets(masks: Tensor, boxes: Tensor, chosen: Tensor, size: int) -> Tensor:
    """What the mask head should say of boxes: RoIAlign of the object's mask, one where half of a pixel is covered.

    Args:
        masks: (objects, height, width), 0 or 1, of one image.
        boxes: (n, 4) in its pixels.
        chosen: (n,), index of each box's object.
        size: s, pixels a side.

    Returns:
        (n, s, s), 0 or 1.
    """
    from torchvision.ops import roi_align

    if not len(boxes):
        return boxes.new_zeros(0, size, size)
    height, width = masks.shape[-2:]
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    # Of each object's mask alone, for a batch of them would be a copy of the image a box.
    targets = boxes.new_zeros(len(boxes), size, size)
    for number in chosen.unique():
        own = (chosen == number).nonzero().squeeze(1)
        mask = masks[number][None, None].to(boxes.dtype)
        targets[own] = roi_align(mask, [boxes[own]], size, 1.0, sampling_ratio=0, aligned=True)[:, 0]
    return (targets >= 0.5).to(boxes.dtype)


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """First pixel and the one after the last, a pixel more than the box on each side."""
    first = min(max(math.floor(low) - 1, 0), length)
    last = min(max(math.ceil(high) + 1, first), length)
    return first, last


def _places(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Centres of pixels from -1 at a box's lower edge to 1 at the other; 0 in a box without extent."""
    places = (pixels.to(low.dtype) + 0.5 - low) / (high - low) * 2 - 1
    return torch.where(places.isfinite(), places, torch.zeros_like(places))
