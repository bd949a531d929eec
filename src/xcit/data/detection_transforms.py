"""Prepares annotated images for training a detector: mirrors, resizes and crops them as the published code does.

Shapes: `h` and `w` are the image's height and width, `C` is its number of channels, `n` is its number of objects.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xcit.data.coco import CocoImages
from xcit.errors import check_field
from xcit.images.resize_8bit import Pixels, fitted_size, resize_bilinear_8bit, resize_nearest_8bit

MIN_SIDE = 32
"""Images with a side shorter than this number of pixels are not used in training, as in the published code."""


class AnnotatedImage(NamedTuple):
    """An image with its objects."""

    pixels: Pixels  # (h, w, C)
    boxes: NDArray[np.float32]  # (n, 4), (x1, y1, x2, y2)
    labels: NDArray[np.int64]  # (n,), class indices from 1
    masks: Pixels  # (n, h, w), 0 or 1


class TrainableImages:
    """The images of a data set that are used for training, as input for `TrainLoader`.

    Args:
        images: the data set.
        num_channels: number of channels of the pixels: 3, or 1 for grey images.
        with_empty: whether to include images that have no trainable objects (see `CocoObject.is_trainable`).
    """

    def __init__(self, images: CocoImages, *, num_channels: int, with_empty: bool) -> None:
        self.images, self.num_channels = images, num_channels
        is_trained = images.images.rows["size"].min(axis=1) >= MIN_SIDE
        if not with_empty:
            is_trained &= images.images.num_trainable() > 0
        self.indices = np.flatnonzero(is_trained)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[AnnotatedImage, int]:
        """Returns an annotated image and the number 0. `TrainLoader` needs this number as a label; it has no meaning.

        Raises:
            XCiTError: "<path>: <reason>" if the image can't be read.
        """
        place = int(self.indices[index])
        pixels = picture_pixels(self.images.read(place), self.num_channels)
        objects = [one for one in self.images.images[place].objects if one.is_trainable]
        corners = np.array([one.box for one in objects], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = np.array([one.label + 1 for one in objects], dtype=np.int64)
        masks = self.images.masks(place, objects)
        return AnnotatedImage(pixels, _clipped(corners, pixels.shape[:2]), labels, masks), 0

    def groups(self) -> list[int]:
        """Returns the group of each image: 1 if the image is wider than high, else 0.

        Batches with images of one group need less padding.
        """
        heights, widths = self.images.images.rows["size"][self.indices].T
        groups: list[int] = (widths > heights).astype(int).tolist()
        return groups


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """Augmentation of annotated images in training.

    Attributes:
        flip: probability that an image is mirrored.
        short_sides: possible lengths of an image's short side, in pixels. For each image, one length is drawn at
            random, and the image is scaled so that its short side has this length. If the long side would then exceed
            `long_side`, the image is scaled so that its long side has the length `long_side`.
        long_side: the largest length of an image's long side, in pixels.
        crop: probability that an image is scaled to one of `crop_short_sides` and cropped, before it is scaled to one
            of `short_sides`.
        crop_short_sides: possible lengths of the short side before cropping, in pixels.
        crop_size: smallest and largest side of the crop, in pixels; each side is drawn at random. A side of the image
            that is shorter than the smallest side of the crop is not cropped.
    """

    flip: float = 0.5
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_size: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name in ("flip", "crop"):
            check_field(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        for name in ("short_sides", "crop_short_sides"):
            sides = getattr(self, name)
            check_field(self, name, bool(sides) and min(sides) > 0, "one or more numbers above 0")
        check_field(self, "long_side", self.long_side > 0, "above 0")
        check_field(
            self,
            "crop_size",
            1 <= self.crop_size[0] <= self.crop_size[1],
            "two numbers of pixels, the smaller one first",
        )


def picture_pixels(picture: Image.Image, num_channels: int) -> Pixels:
    """Converts an image to 8-bit pixels (h, w, C), with C = 1 if `num_channels` is 1, else C = 3."""
    pixels = np.asarray(picture.convert("L" if num_channels == 1 else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def augmented_annotations(image: AnnotatedImage, config: DetectionAugmentation) -> list[Tensor]:
    """Augments an annotated image, with random numbers from Python's global generator.

    Returns:
        A list of pixels, uint8 (C, h, w); boxes (n, 4); labels (n,); and masks, uint8 (n, h, w).
    """
    if random.random() < config.flip:
        image = _mirrored(image)
    if random.random() < config.crop:
        image = _scaled(image, random.choice(config.crop_short_sides), config.long_side)
        image = _cropped(image, config.crop_size)
    image = _scaled(image, random.choice(config.short_sides), config.long_side)
    return [
        torch.from_numpy(np.ascontiguousarray(image.pixels.transpose(2, 0, 1))),
        torch.from_numpy(image.boxes),
        torch.from_numpy(image.labels),
        torch.from_numpy(np.ascontiguousarray(image.masks)),
    ]


def collate_detections(
    samples: Sequence[tuple[list[Tensor], int, tuple[str, ...]]],
) -> tuple[list[object], Tensor, list[str]]:
    """Collates samples for `TrainLoader`: pixels, boxes, labels and masks become lists with one entry per image."""
    parts, numbers, unreadable = zip(*samples, strict=True)
    return (
        [list(part) for part in zip(*parts, strict=True)],
        torch.tensor(numbers),
        [r for own in unreadable for r in own],
    )


def _mirrored(image: AnnotatedImage) -> AnnotatedImage:
    width = image.pixels.shape[1]
    boxes = image.boxes.copy()
    boxes[:, [0, 2]] = width - image.boxes[:, [2, 0]]
    return AnnotatedImage(image.pixels[:, ::-1], boxes, image.labels, image.masks[:, :, ::-1])


def _scaled(image: AnnotatedImage, short_side: int, long_side: int) -> AnnotatedImage:
    height, width = image.pixels.shape[:2]
    size = fitted_size(height, width, long_side=long_side, short_side=short_side)
    pixels = resize_bilinear_8bit(np.ascontiguousarray(image.pixels), size)
    masks = np.zeros((len(image.masks), *size), np.uint8)
    for scaled, mask in zip(masks, image.masks, strict=True):
        scaled[:] = resize_nearest_8bit(mask, size)
    factors = np.array([size[1] / width, size[0] / height] * 2, dtype=np.float32)
    return AnnotatedImage(pixels, _clipped(image.boxes * factors, size), image.labels, masks)


def _cropped(image: AnnotatedImage, bounds: tuple[int, int]) -> AnnotatedImage:
    """Returns a random crop of an image. The crop may contain no objects."""
    sides = image.pixels.shape[:2]
    height, width = (random.randint(min(side, bounds[0]), min(side, bounds[1])) for side in sides)
    top, left = random.randint(0, sides[0] - height), random.randint(0, sides[1] - width)
    window = (slice(top, top + height), slice(left, left + width))
    boxes = _clipped(image.boxes - np.array([left, top, left, top], dtype=np.float32), (height, width))
    seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return AnnotatedImage(image.pixels[window], boxes[seen], image.labels[seen], image.masks[seen][:, *window])


def _clipped(boxes: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    height, width = size
    return boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
