"""Masks of objects: small squares of probabilities. Inference pastes them into the image; training crops targets."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 2**22
"""Largest number of pixels of one part of a mask that is pasted into a large image."""


class PastedMask(NamedTuple):
    """The part of an image that a mask may cover. Outside of it, the probability is 0."""

    top: int
    left: int
    probabilities: Tensor  # (height, width)


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> PastedMask:
    """Resizes a mask to its box, by bilinear interpolation between its pixels' centres, with zero padding.

    Args:
        mask: (s, s) probabilities.
        box: (4,) in pixels of the image.
        size: height and width of the image.

    Returns:
        The probabilities of the box's pixels and of one more pixel on each side, within the image. A pixel belongs to
        the object if its probability is 0.5 or more.
    """
    (part,) = paste_columns(mask, box, size, max(1, size[1]) * max(1, size[0]))
    return part


def paste_columns(
    mask: Tensor, box: Tensor, size: tuple[int, int], pixels_at_once: int = PIXELS_AT_ONCE
) -> Iterator[PastedMask]:
    """Like `paste_mask`, but yields the mask in parts from left to right.

    A part consists of whole columns, at most `pixels_at_once` pixels or a single column.
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
    """Returns the part of the image that a box's mask may cover: top, bottom (exclusive), left, right (exclusive)."""
    x1, y1, x2, y2 = box.tolist()
    return (*_span(y1, y2, size[0]), *_span(x1, x2, size[1]))


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pastes masks (n, s, s) into their boxes (n, 4); returns probabilities (n, 1, height, width) of whole images."""
    images = masks.new_zeros(len(masks), 1, *size)
    for image, mask, box in zip(images, masks, boxes, strict=True):
        top, left, probabilities = paste_mask(mask, box, size)
        height, width = probabilities.shape
        image[0, top : top + height, left : left + width] = probabilities
    return images


def mask_targets(masks: Tensor, boxes: Tensor, chosen: Tensor, size: int) -> Tensor:
    """Computes the targets of the mask head for boxes: RoIAlign of the object's mask, thresholded at 0.5.

    Args:
        masks: masks of one image's objects, (objects, height, width), 0 or 1.
        boxes: (n, 4) in the image's pixels.
        chosen: (n,), index of each box's object.
        size: s, pixels per side.

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
    """Returns the first pixel and one past the last pixel of a box that is extended by one pixel on each side."""
    first = min(max(math.floor(low) - 1, 0), length)
    last = min(max(math.ceil(high) + 1, first), length)
    return first, last


def _places(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns the pixels' centres relative to a box: -1 at its edge `low`, 1 at `high`; 0 if the box has no extent."""
    places = (pixels.to(low.dtype) + 0.5 - low) / (high - low) * 2 - 1
    return torch.where(places.isfinite(), places, torch.zeros_like(places))
