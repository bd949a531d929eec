"""Resizing of 8-bit images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bilinear_8_bits(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (C, h, w) uint8 at another height and width: bilinear, without antialiasing, rounded to 8 bits."""
    if tuple(image.shape[-2:]) == size:
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return (resized + 0.5).floor().clamp(0, 255).to(torch.uint8)
