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
    if spec.resize == "short_side":
        image = resize_short_side(image, spec.resize_to)
    elif image.size != (spec.image_size, spec.image_size):
        image = image.resize((spec.image_size, spec.image_size), Image.Resampling.BICUBIC)
    return normalize(_center_crop(image, spec.image_size), spec)


def normalize(image: Image.Image, spec: Preprocessing) -> torch.Tensor:
    """The last step of `preprocess` alone: an image of any size, of the mode `pixel_mode(spec)`, to (C, h, w)."""
    pixels = np.array(image)
    tensor = torch.from_numpy(pixels.reshape(image.height, image.width, len(spec.mean)))
    tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return tensor.sub_(mean).div_(std)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Scales the short side to `size` pixels and the long one in proportion, bicubic, rounded as torchvision does.

    Raises:
        XCiTError: if the image is so elongated that its scaled copy would take more than half a gigabyte.
    """
    short, long = min(image.size), max(image.size)
    new_long = int(size * long / short)
    if size * new_long > _MAX_RESIZED_PIXELS:
        raise XCiTError(
            f"an image of {image.width} x {image.height} pixels is too elongated to scale its short side to {size}"
        )
    new_size = (size, new_long) if image.width <= image.height else (new_long, size)
    return image if image.size == new_size else image.resize(new_size, Image.Resampling.BICUBIC)


def pixel_mode(spec: Preprocessing) -> str:
    """Pillow's mode of what the model sees: "L" or "RGB".

    Raises:
        XCiTError: if `spec` has neither one nor three channels.
    """
    mode = _MODES.get(len(spec.mean))
    if mode is None or len(spec.std) != len(spec.mean):
        raise XCiTError(f"preprocessing takes 1 or 3 means and as many std, not {len(spec.mean)} and {len(spec.std)}")
    return mode


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    left, top = (_crop_start(length, size) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def _crop_start(length: int, size: int) -> int:
    """Where a crop of `size` from `length` pixels starts, torchvision's rounding: half to even; negative in padding."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)
