"""From a picture to a model's input, with the very numbers that torchvision's transforms on PIL images give."""

import numpy as np
import torch
from PIL import Image

from xcit.errors import XCiTError
from xcit.models import Preprocessing

_MODES = {1: "L", 3: "RGB"}

# Half a gigabyte: only a picture like a hair, 1 pixel by thousands, grows so large before its centre is cut out.
_MAX_RESIZED_PIXELS = 2**27


def preprocess(image: Image.Image, spec: Preprocessing) -> torch.Tensor:
    """Resizes, crops and normalises an image as `spec` says, bit for bit as torchvision does.

    The same as `Resize` (bicubic, with antialiasing, on 8-bit pixels), `CenterCrop` (zeros around what is smaller),
    `ToTensor` and `Normalize`, without the seconds that it takes to import torchvision.

    Args:
        image: of any mode that Pillow converts to RGB or grey; `read_image` gives one that is right.
        spec: what the model needs. One mean makes a grey input, three make RGB.

    Returns:
        float32 (C, image_size, image_size), C the number of means.

    Raises:
        XCiTError: if `spec` has neither one nor three channels, or the image is so elongated that its scaled copy
            would take more than half a gigabyte.
    """
    mode = pixel_mode(spec)
    if image.mode != mode:
        image = image.convert(mode)
    size = _resized(image.size, spec)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    pixels = np.array(_center_crop(image, spec.image_size))
    tensor = torch.from_numpy(pixels.reshape(spec.image_size, spec.image_size, len(spec.mean)))
    tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return tensor.sub_(mean).div_(std)


def pixel_mode(spec: Preprocessing) -> str:
    """Pillow's mode of what the model sees: "L" or "RGB".

    Raises:
        XCiTError: if `spec` has neither one nor three channels.
    """
    mode = _MODES.get(len(spec.mean))
    if mode is None or len(spec.std) != len(spec.mean):
        raise XCiTError(f"preprocessing takes 1 or 3 means and as many std, not {len(spec.mean)} and {len(spec.std)}")
    return mode


def _resized(size: tuple[int, int], spec: Preprocessing) -> tuple[int, int]:
    if spec.resize == "exact":
        return spec.image_size, spec.image_size
    width, height = size
    short, long = min(size), max(size)
    new_short, new_long = spec.resize_to, int(spec.resize_to * long / short)
    if new_short * new_long > _MAX_RESIZED_PIXELS:
        raise XCiTError(
            f"an image of {width} x {height} pixels is too elongated to scale its short side to {new_short}"
        )
    return (new_short, new_long) if width <= height else (new_long, new_short)


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    left, top = (_crop_start(length, size) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def _crop_start(length: int, size: int) -> int:
    """Where a crop of `size` from `length` pixels starts, torchvision's rounding: half to even; negative in padding."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)
