"""Prepares scenes for a segmenter: resizes them for evaluation, and applies mmseg's augmentation for training.

A scene is an image with its label map. Shapes: `h` and `w` are the height and width of an image, and `C` is the number
of channels of the model.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xcit.data.segmentation import IGNORED, Labels, Scene
from xcit.errors import XCiTError, check_field
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.resize_8bit import Pixels, fitted_size, resize_bilinear_8bit, resize_nearest_8bit

_CROP_TRIES = 10

_HUES = 256
"""Number of hues in Pillow's HSV; OpenCV has 180."""


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentation:
    """Augmentation of scenes in training.

    Attributes:
        scale: smallest and largest value of a random factor. The size to which the preprocessing scales an image is
            multiplied by this factor.
        crop_size: side of the crop, in pixels. A smaller scene is padded, and the labels of the padding are ignored.
        max_class_share: limit of the share of one class in a crop. If a class reaches this share, the crop is drawn
            again, up to ten times; 1 turns this off.
        flip: probability that a scene is mirrored.
        distort: whether brightness, contrast, saturation and hue are changed at random, each with probability 1/2. In
            grey images, only brightness and contrast are changed.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    crop_size: int = 512
    max_class_share: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __post_init__(self) -> None:
        check_field(self, "scale", 0 < self.scale[0] <= self.scale[1], "two factors above 0, the smaller one first")
        check_field(self, "crop_size", self.crop_size >= 1, "at least 1")
        check_field(self, "max_class_share", 0 < self.max_class_share <= 1, "above 0 and at most 1")
        check_field(self, "flip", 0 <= self.flip <= 1, "in 0..1")


def to_pixels(image: Image.Image, spec: SegmentationPreprocessing) -> Pixels:
    """Converts an image to 8-bit pixels (h, w, C), with the number of channels of the model, 1 or 3.

    Raises:
        XCiTError: if the model has another number of channels.
    """
    if len(spec.mean) not in (1, 3):
        raise XCiTError(f"preprocessing needs 1 or 3 means, not {len(spec.mean)}")
    pixels = np.asarray(image.convert("L" if len(spec.mean) == 1 else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def resized_pixels(image: Image.Image, spec: SegmentationPreprocessing) -> Pixels:
    """Converts an image to 8-bit pixels (h, w, C) and scales them to the size for evaluation (see `target_size`)."""
    pixels = to_pixels(image, spec)
    return resize_bilinear_8bit(pixels, target_size(pixels, spec))


def target_size(pixels: Pixels, spec: SegmentationPreprocessing, factor: float = 1.0) -> tuple[int, int]:
    """Returns the size (height, width) to which pixels (h, w, C) are scaled.

    This is the largest size with the same aspect ratio within the bounds `spec.long_side` and `spec.short_side`. The
    bounds are first multiplied by `factor` and rounded down. If both bounds are 0, the result is (h, w) multiplied by
    `factor` and rounded half up.
    """
    height, width = pixels.shape[:2]
    if spec.long_side == 0:
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    long_side, short_side = int(spec.long_side * factor), int(spec.short_side * factor)
    return fitted_size(height, width, long_side=max(1, long_side), short_side=max(1, short_side))


def normalized(pixels: Pixels, spec: SegmentationPreprocessing) -> Tensor:
    """Normalises 8-bit pixels (h, w, C) to float32 (C, h, w).

    The mean and the standard deviation in `spec` are for pixels in 0..1, so they are multiplied by 255.
    """
    mean = torch.tensor([255 * value for value in spec.mean], dtype=torch.float32)
    factor = torch.tensor([1 / (255 * value) for value in spec.std], dtype=torch.float32)
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()
    return image.sub_(mean[:, None, None]).mul_(factor[:, None, None])


def augmented_scene(scene: Scene, config: SegmentationAugmentation, spec: SegmentationPreprocessing) -> list[Tensor]:
    """Augments a scene, with random numbers from Python's global generator.

    Returns:
        A list of the normalised image, float32 (C, crop_size, crop_size), and the label map, uint8 (crop_size,
        crop_size).
    """
    pixels = to_pixels(scene.image, spec)
    size = target_size(pixels, spec, random.uniform(*config.scale))
    pixels, labels = resize_bilinear_8bit(pixels, size), resize_nearest_8bit(scene.labels, size)
    pixels, labels = _cropped(pixels, labels, config)
    if random.random() < config.flip:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    if config.distort:
        pixels = _distorted(pixels)
    side = config.crop_size
    image = torch.zeros(pixels.shape[2], side, side)
    image[:, : pixels.shape[0], : pixels.shape[1]] = normalized(pixels, spec)
    padded = torch.full((side, side), IGNORED, dtype=torch.uint8)
    padded[: labels.shape[0], : labels.shape[1]] = torch.from_numpy(np.ascontiguousarray(labels))
    return [image, padded]


def _cropped(pixels: Pixels, labels: Labels, config: SegmentationAugmentation) -> tuple[Pixels, Labels]:
    side = config.crop_size
    for _ in range(_CROP_TRIES + 1):
        top, left = (random.randint(0, max(length - side, 0)) for length in labels.shape)
        window = (slice(top, top + side), slice(left, left + side))
        if config.max_class_share == 1 or _is_varied(labels[window], config.max_class_share):
            break
    return pixels[window], labels[window]


def _is_varied(labels: Labels, max_class_share: float) -> bool:
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < max_class_share * counts.sum())


def _distorted(pixels: Pixels) -> Pixels:
    """Applies mmseg's photometric distortion, but changes hue and saturation in Pillow's HSV, not in OpenCV's HSV."""
    if _chance():
        pixels = _line(pixels, 1, random.uniform(-32, 32))
    contrast_first = _chance()
    if contrast_first and _chance():
        pixels = _line(pixels, random.uniform(0.5, 1.5), 0)
    if pixels.shape[2] == 3:
        pixels = _recoloured(pixels)
    if not contrast_first and _chance():
        pixels = _line(pixels, random.uniform(0.5, 1.5), 0)
    return pixels


def _recoloured(pixels: Pixels) -> Pixels:
    saturation = random.uniform(0.5, 1.5) if _chance() else 1.0
    hue = round(random.randint(-18, 17) * _HUES / 180) if _chance() else 0
    if saturation == 1 and hue == 0:
        return pixels
    hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + hue) % _HUES
    hsv[..., 1] = _line(hsv[..., 1], saturation, 0)
    return np.asarray(Image.frombytes("HSV", hsv.shape[1::-1], hsv.tobytes()).convert("RGB"))


def _line(values: Pixels, factor: float, summand: float) -> Pixels:
    return (values.astype(np.float32) * factor + summand).clip(0, 255).astype(np.uint8)


def _chance() -> bool:
    return random.random() < 0.5
