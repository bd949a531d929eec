"""Makes two large, global crops and several small, local crops of an image, each with its own augmentation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageFilter
from torch import Tensor

from xcit.errors import check_field
from xcit.images.preprocess import Preprocessing, pixel_mode

MultiCropTransform = Callable[[Image.Image], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig:
    """DINO's crops (arXiv 2104.14294) and their augmentation; the defaults are those of DINO's code.

    The size of a global crop is the image size of the preprocessing.

    Attributes:
        num_local: number of local crops.
        local_size: side of a local crop, in pixels.
        global_scale: smallest and largest share of the image's area that a global crop shows.
        local_scale: smallest and largest share of the image's area that a local crop shows.
        flip: probability that a crop is mirrored.
        jitter: probability that the colours of a crop are changed.
        jitter_strength: largest changes of brightness, contrast, saturation and hue. In grey images, only brightness
            and contrast are changed.
        grayscale: probability that a crop is converted to grey.
        blur: probabilities that a crop is blurred: the first global crop, the second global crop, and a local crop.
        blur_radius: smallest and largest radius of the Gaussian blur, in pixels.
        solarize: probability that bright pixels of the second global crop are inverted.
    """

    num_local: int = 8
    local_size: int = 96
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    flip: float = 0.5
    jitter: float = 0.8
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.2

    def __post_init__(self) -> None:
        check_field(self, "num_local", self.num_local >= 0, "0 or more")
        check_field(self, "local_size", self.local_size >= 1, "at least 1")
        for name in ("flip", "jitter", "grayscale", "solarize"):
            check_field(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        check_field(self, "blur", all(0 <= share <= 1 for share in self.blur), "three probabilities in 0..1")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            check_field(self, name, 0 < low <= high <= 1, "two numbers above 0 and at most 1, the smaller one first")
        check_field(
            self,
            "blur_radius",
            0 <= self.blur_radius[0] <= self.blur_radius[1],
            "two numbers of pixels, the smaller one first",
        )
        check_field(
            self, "jitter_strength", all(part >= 0 for part in self.jitter_strength), "four numbers of 0 or more"
        )
        check_field(self, "jitter_strength", self.jitter_strength[3] <= 0.5, "at most 0.5 in the last number, the hue")


def multi_crop_transform(config: MultiCropConfig, spec: Preprocessing) -> MultiCropTransform:
    """Returns a transform from an image to its crops.

    The first two crops are global, (C, image_size, image_size). The other crops are local, (C, local_size, local_size).
    All crops are normalised tensors. All random numbers come from torch's global generator.
    """
    from torchvision import transforms

    is_grey = pixel_mode(spec) == "L"
    brightness, contrast, saturation, hue = config.jitter_strength
    jitter = transforms.ColorJitter(brightness, contrast, *(() if is_grey else (saturation, hue)))
    to_tensor = [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]

    def crop(size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0) -> Callable[..., Tensor]:
        steps: list[object] = [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(config.flip),
            transforms.RandomApply([jitter], p=config.jitter),
        ]
        if not is_grey:
            steps.append(transforms.RandomGrayscale(config.grayscale))
        steps.append(transforms.RandomApply([_Blur(*config.blur_radius)], p=blur))
        if solarize:
            steps.append(transforms.RandomSolarize(threshold=128, p=solarize))
        composed: Callable[..., Tensor] = transforms.Compose([*steps, *to_tensor])
        return composed

    local = crop(config.local_size, config.local_scale, config.blur[2])
    crops = [
        crop(spec.image_size, config.global_scale, config.blur[0]),
        crop(spec.image_size, config.global_scale, config.blur[1], config.solarize),
        *[local] * config.num_local,
    ]
    return _MultiCrop("L" if is_grey else "RGB", crops)


@dataclass(frozen=True)
class _MultiCrop:
    """A transform that converts an image to the Pillow mode `mode`, and returns a list of its crops."""

    mode: str
    crops: list[Callable[..., Tensor]]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        image = image.convert(self.mode)
        return [crop(image) for crop in self.crops]


@dataclass(frozen=True)
class _Blur:
    """A transform that applies Pillow's Gaussian blur, with a random radius between `low` and `high` pixels."""

    low: float
    high: float

    def __call__(self, image: Image.Image) -> Image.Image:
        radius = self.low + (self.high - self.low) * torch.rand(()).item()
        return image.filter(ImageFilter.GaussianBlur(radius))
