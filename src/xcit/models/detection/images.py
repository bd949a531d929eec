"""Preprocessing as for the published detectors: conversion to 8 bits, resizing, and padding to multiples of 32."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.resize_8bit import bilinear_taps

PAD_TO = 32
"""The sides of the network's input are padded to multiples of this number of pixels."""


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes an image (C, h, w) uint8 by bilinear interpolation, on the device of the image.

    The result equals OpenCV's result bit for bit. `resize_bilinear_8bit` explains the arithmetic.

    Raises:
        XCiTError: if the new height or width is below 1.
    """
    height, width = image.shape[-2:]
    if min(size) < 1:
        raise XCiTError(f"an image can't be scaled to {size[0]}x{size[1]} pixels")
    if (height, width) == size:
        return image.clone()
    if (height, width) == (2 * size[0], 2 * size[1]):
        four = image.unflatten(2, (size[1], 2)).unflatten(1, (size[0], 2)).sum(dim=(2, 4), dtype=torch.int32)
        return ((four + 2) >> 2).to(torch.uint8)
    (left, right), across = _taps(width, size[1], image.device, resets_weights=True)
    wide = image[:, :, left] * across[0] + image[:, :, right] * across[1]
    wide >>= 4
    (top, bottom), down = _taps(height, size[0], image.device, resets_weights=False)
    total = ((wide[:, top] * down[0][:, None]) >> 16) + ((wide[:, bottom] * down[1][:, None]) >> 16)
    return ((total + 2) >> 2).to(torch.uint8)


def _taps(old: int, new: int, device: torch.device, *, resets_weights: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the result of `bilinear_taps` as tensors: the two neighbours and the two weights of each new pixel."""
    places, weights = bilinear_taps(old, new, resets_weights=resets_weights)
    return [torch.from_numpy(place).to(device) for place in places], [
        torch.from_numpy(weight).to(device) for weight in weights
    ]


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width, both rounded up to multiples of 32."""
    height, width = (math.ceil(length / PAD_TO) * PAD_TO for length in size)
    return height, width


def to_8_bits(image: Tensor, num_channels: int) -> Tensor:
    """Converts an image (C, h, w), floating-point in 0..1 or uint8, to uint8.

    Raises:
        XCiTError: if the image is not a tensor, has the wrong shape, dtype or number of channels, or has no pixels.
    """
    if not isinstance(image, Tensor):
        raise XCiTError(
            f"an image for the detector is a tensor ({num_channels}, height, width), not {type(image).__name__}: "
            "xcit.detect accepts images of other types"
        )
    if image.ndim != 3 or image.shape[0] != num_channels or not image.numel():
        is_last = image.ndim == 3 and image.shape[2] == num_channels
        raise XCiTError(
            f"an image for the detector is ({num_channels}, height, width), not {tuple(image.shape)}"
            f"{': image.permute(2, 0, 1) puts the channels first' if is_last else ''}"
        )
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise XCiTError(f"an image for the detector is uint8, or floating-point in 0..1, not {image.dtype}")
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def pad_and_stack(images: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """Stacks images (C, h_i, w_i) into one batch (B, C, H, W), with zero padding on the right and at the bottom.

    Args:
        images: the images.
        size: H and W, at least as large as each image. None means the largest height and the largest width of the
            images, rounded up to multiples of 32.
    """
    sizes = [padded_size((image.shape[-2], image.shape[-1])) for image in images]
    height, width = size or (max(own[0] for own in sizes), max(own[1] for own in sizes))
    padded = [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    return torch.stack(padded)
