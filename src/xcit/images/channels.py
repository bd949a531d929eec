"""Reads and preprocesses images with any number of channels, such as multispectral images."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.eight_bits import to_8_bits
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.images.read import ImageSource

Pixels = NDArray[np.uint8]


def read_channels(source: ImageSource, num_channels: int) -> Pixels:
    """Reads an image with `num_channels` channels. No channel is interpreted as a colour or as transparency.

    Args:
        source: an array (H, W, C), the path of a .npy file that contains an array (H, W, C), a tensor (C, H, W), or a
            PIL image with C bands. The pixels are uint8, uint16 (scaled to 8 bits), bool, or floating-point in 0..1.
        num_channels: number of channels, C.

    Returns:
        uint8 (H, W, C).

    Raises:
        XCiTError: if the file can't be read, or the pixels have another shape, type or range.
    """
    if isinstance(source, Tensor):
        tensor = source.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
        pixels = tensor.permute(1, 2, 0).numpy() if tensor.ndim == 3 else tensor.numpy()
        return _checked(pixels, num_channels, "image tensor")
    if isinstance(source, np.ndarray | Image.Image):
        return _checked(np.asarray(source), num_channels, "image array")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    if path is None or path.suffix != ".npy":
        raise XCiTError(
            f"{path or 'image bytes'}: the model takes {num_channels} channels: give an array (H, W, C), or a .npy "
            "file that contains an array (H, W, C)"
        )
    try:
        return _checked(np.load(path, allow_pickle=False), num_channels, str(path))
    except FileNotFoundError:
        raise XCiTError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, XCiTError):
            raise
        raise XCiTError(f"{path}: not a .npy file of numbers") from None


def preprocess_channels(pixels: Pixels, spec: Preprocessing) -> Tensor:
    """Resizes, crops and normalises pixels (H, W, C), with the steps of `preprocess` for each channel.

    Returns:
        float32 (C, image_size, image_size).
    """
    return torch.cat(
        [
            preprocess(
                Image.fromarray(np.ascontiguousarray(pixels[:, :, index])), replace(spec, mean=(mean,), std=(std,))
            )
            for index, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True))
        ]
    )


def _checked(pixels: NDArray[np.generic], num_channels: int, what: str) -> Pixels:
    if pixels.ndim != 3 or pixels.shape[2] != num_channels or 0 in pixels.shape:
        raise XCiTError(f"{what}: shape {pixels.shape} is not (H, W, C) with the model's {num_channels} channels")
    try:
        return to_8_bits(pixels)
    except XCiTError as error:
        raise XCiTError(f"{what}: {error}") from None
