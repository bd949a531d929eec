"""Prepares images for a model. The results are bit-identical to those of torchvision's transforms on PIL images."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from xcit.errors import XCiTError, check_field

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MODES = {1: "L", 3: "RGB"}

# At this limit, a scaled RGB image takes about half a gigabyte. Only an extremely elongated image exceeds the limit,
# such as an image of 1 x 5000 pixels with its short side scaled to 224 pixels.
_MAX_RESIZED_PIXELS = 2**27


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The steps that convert an image to a model's input.

    Pillow resizes the 8-bit pixels with bicubic interpolation. A model with one channel takes grey images, a model with
    three channels takes RGB images, and any other model takes arrays (see `channels.py`).

    Attributes:
        image_size: side of the square input in pixels.
        resize: "short_side" scales the short side to `resize_to` pixels, keeps the aspect ratio, and crops the centre.
            "exact" scales the whole image to the square input and does not keep the aspect ratio.
        resize_to: length of the short side after scaling, in pixels; not used by "exact".
        mean: one number per channel, for pixels in 0..1.
        std: one number per channel, for pixels in 0..1.
    """

    image_size: int = 224
    resize: Literal["short_side", "exact"] = "short_side"
    resize_to: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        # "exact" does not use `resize_to`.
        for name in ("image_size", "resize_to") if self.resize == "short_side" else ("image_size",):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")
        check_field(self, "std", all(std > 0 for std in self.std), "above 0")

    def sentence(self) -> str:
        """Returns a description of the steps in one line of text."""
        if self.resize == "exact":
            resize = f"straight to {self.image_size} x {self.image_size}"
        else:
            resize = f"short side to {self.resize_to}, centre {self.image_size} x {self.image_size}"
        return f"{resize}, bicubic; mean {self.mean}, std {self.std}"

    def changed(
        self, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, size: int | None = None
    ) -> "Preprocessing":
        """Returns a copy with another mean, standard deviation or input size. None keeps the present value.

        Args:
            mean: one number per channel, or a single number for all channels.
            std: one number per channel, or a single number for all channels.
            size: the new `image_size` in pixels; `resize_to` changes in proportion.

        Raises:
            XCiTError: if the number of means or standard deviations is wrong, or the size is below 1.
        """
        means, stds = _channels_of(self, mean, std)
        if size is None:
            return replace(self, mean=means, std=stds)
        if size < 1:
            raise XCiTError(f"the size is {size} pixels, but must be at least 1")
        resize_to = max(1, round(self.resize_to * size / self.image_size))
        return replace(self, mean=means, std=stds, image_size=size, resize_to=resize_to)


DINO_PREPROCESSING = Preprocessing(image_size=224, resize_to=256)
"""The preprocessing for the published k-NN and linear accuracies of DINO: short side 256 pixels, centre crop 224."""


def published_preprocessing(protocol: Literal["mmpretrain", "official"], image_size: int) -> Preprocessing:
    """Returns the preprocessing with which the published accuracies were measured.

    Args:
        protocol: "official" (also used by timm) scales the short side to `image_size` and crops the centre.
            "mmpretrain" scales the image to 384 x 384 if `image_size` is 384. For any other size, it scales the short
            side to `image_size` * 256 / 224, rounded to whole pixels, and crops the centre.
        image_size: side of the model's input in pixels. Accuracies were published for 224 and 384.

    Raises:
        XCiTError: if the protocol is unknown.
    """
    if protocol == "official":
        return Preprocessing(image_size=image_size, resize_to=image_size)
    if protocol != "mmpretrain":
        raise XCiTError(f"the protocol is {protocol!r}, but must be 'mmpretrain' or 'official'")
    if image_size == 384:
        return Preprocessing(image_size=image_size, resize="exact", resize_to=image_size)
    return Preprocessing(image_size=image_size, resize_to=round(image_size * 256 / 224))


@dataclass(frozen=True, kw_only=True)
class SegmentationPreprocessing:
    """The steps that convert an image to a segmenter's input.

    The image is enlarged or reduced to the largest size within both limits, `long_side` and `short_side`. The aspect
    ratio is kept, and each side is rounded to whole pixels (half up). The interpolation is bilinear on 8-bit pixels.
    Nothing is padded or cropped. A model with a single mean takes grey images.

    Attributes:
        long_side: limit of the long side in pixels; 0 if images are not scaled.
        short_side: limit of the short side in pixels; 0 if images are not scaled.
        mean: one number per channel, for pixels in 0..1.
        std: one number per channel, for pixels in 0..1.
    """

    long_side: int = 2048
    short_side: int = 512
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not (0 < self.short_side <= self.long_side or self.long_side == self.short_side == 0):
            raise XCiTError(
                f"SegmentationPreprocessing: short_side {self.short_side} must be above 0 and at most long_side "
                f"{self.long_side}, or both 0"
            )
        is_right = all(std > 0 for std in self.std) and len(self.mean) == len(self.std)
        check_field(self, "std", is_right, "above 0, one number per channel")

    def sentence(self) -> str:
        """Returns a description of the steps in one line of text."""
        size = f"to fit {self.long_side} x {self.short_side}" if self.short_side else "at their own size"
        return f"{size}, bilinear; mean {self.mean}, std {self.std}"

    def changed(
        self, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, size: int | None = None
    ) -> "SegmentationPreprocessing":
        """Returns a copy with another mean, standard deviation or short side. None keeps the present value.

        Args:
            mean: one number per channel, or a single number for all channels.
            std: one number per channel, or a single number for all channels.
            size: the new `short_side` in pixels; `long_side` changes in proportion.

        Raises:
            XCiTError: if the number of means or standard deviations is wrong, or if `size` is given but images are not
                scaled.
        """
        means, stds = _channels_of(self, mean, std)
        if size is None:
            return replace(self, mean=means, std=stds)
        if not self.short_side:
            raise XCiTError("the model does not scale images: no size can be given")
        return replace(
            self,
            mean=means,
            std=stds,
            short_side=size,
            long_side=max(size, round(self.long_side * size / self.short_side)),
        )


def _channels_of(
    spec: Preprocessing | SegmentationPreprocessing, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the given mean and standard deviation. If one of them is None, the value of `spec` is returned instead.

    A single number is repeated for all channels.
    """
    channels = len(spec.mean)
    found = []
    for name, given, own in (("mean", mean, spec.mean), ("std", std, spec.std)):
        values = own if given is None else given * channels if len(given) == 1 else given
        if len(values) != channels:
            raise XCiTError(f"{name} has {len(values)} numbers, but the model has {channels} channels")
        found.append(values)
    return found[0], found[1]


def preprocess(image: Image.Image, spec: Preprocessing) -> torch.Tensor:
    """Resizes, crops and normalises an image.

    The result is bit-identical to the result of four torchvision transforms on a PIL image: `Resize` (bicubic, with
    antialiasing), `CenterCrop` (pads smaller images with zeros), `ToTensor` and `Normalize`. This function does not use
    torchvision, because the import of torchvision takes seconds.

    Args:
        image: an image of any mode that Pillow can convert to RGB or grey, for example the result of `read_image`.
        spec: the model's preprocessing. With one mean, the image is converted to grey; with three means, to RGB.

    Returns:
        float32 (C, image_size, image_size), where C is the number of means.

    Raises:
        XCiTError: if `spec` has neither one nor three channels, or the image is so elongated that its scaled copy would
            take more than half a gigabyte.
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
    """Converts an image of any size to a normalised tensor, without resizing or cropping.

    Args:
        image: an image of mode `pixel_mode(spec)`.
        spec: the model's preprocessing, of which only the mean and the standard deviation are used.

    Returns:
        float32 (C, h, w).
    """
    pixels = np.array(image)
    tensor = torch.from_numpy(pixels.reshape(image.height, image.width, len(spec.mean)))
    tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return tensor.sub_(mean).div_(std)


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Scales the short side to `size` pixels and the long side in proportion, with bicubic interpolation.

    The long side is rounded down to whole pixels, as in torchvision.

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
    """Returns the Pillow mode of the images that the model takes: "L" (grey) or "RGB".

    Raises:
        XCiTError: if `spec` has neither one nor three channels.
    """
    mode = _MODES.get(len(spec.mean))
    if mode is None or len(spec.std) != len(spec.mean):
        raise XCiTError(
            f"preprocessing needs 1 or 3 means and the same number of std, not {len(spec.mean)} and {len(spec.std)}"
        )
    return mode


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    left, top = (_crop_start(length, size) for length in image.size)
    return image.crop((left, top, left + size, top + size))


def _crop_start(length: int, size: int) -> int:
    """Returns the index of the first pixel of a centre crop of `size` pixels, rounded half to even as in torchvision.

    If the image is smaller than the crop, the result is negative, and its absolute value is the number of pixels of
    padding before the image.
    """
    return round((length - size) / 2) if length >= size else -((size - length) // 2)
