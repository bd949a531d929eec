"""What a person needs beside the weights to use a model's numbers: its preprocessing and its class names."""

from dataclasses import dataclass
from typing import Literal

from xcit.errors import XCiTError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes a model's input.

    `resize` "short_side" scales the short side to `resize_to` pixels and crops the centre; "exact" scales straight to
    the square `image_size`, without regard to the aspect ratio. Both are bicubic on 8-bit pixels (Pillow).
    `mean` and `std` are for pixels in 0..1, one number a channel; one number means a greyscale model.
    """

    image_size: int = 224
    resize: Literal["short_side", "exact"] = "short_side"
    resize_to: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        # "exact" has no use for `resize_to`.
        for name in ("image_size", "resize_to") if self.resize == "short_side" else ("image_size",):
            if getattr(self, name) < 1:
                raise XCiTError(f"Preprocessing: {name} is {getattr(self, name)}, must be at least 1")
        if not all(std > 0 for std in self.std):
            raise XCiTError(f"Preprocessing: std is {self.std}, must be above 0")


DINO_PREPROCESSING = Preprocessing(image_size=224, resize_to=256)
"""With which the published k-NN and linear figures were measured: short side to 256, centre crop 224."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Name, class names in the order of the logits (empty when unknown) and preprocessing of a model with weights.

    `class_ids` are the names of the classes' folders on disk where these differ from the names (ImageNet's wnids).
    """

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()


def published_preprocessing(protocol: Literal["mmpretrain", "official"], image_size: int) -> Preprocessing:
    """Gives the preprocessing with which the published accuracies were measured.

    Args:
        protocol: "official" (timm's too): short side to `image_size`, centre crop. "mmpretrain": at 384, straight to
            384 x 384; at 224, short side to 256 and centre crop; at any other size the same in proportion, the short
            side rounded to whole pixels.
        image_size: pixels a side of the model's input; 224 and 384 were published.

    Raises:
        XCiTError: if there is no such protocol.
    """
    if protocol == "official":
        return Preprocessing(image_size=image_size, resize_to=image_size)
    if protocol != "mmpretrain":
        raise XCiTError(f"no protocol {protocol!r}; there are 'mmpretrain' and 'official'")
    if image_size == 384:
        return Preprocessing(image_size=image_size, resize="exact", resize_to=image_size)
    return Preprocessing(image_size=image_size, resize_to=round(image_size * 256 / 224))


@dataclass(frozen=True, kw_only=True)
class SegmentationPreprocessing:
    """How an image becomes a segmenter's input.

    `long_side` and `short_side` bound it: it is scaled, up or down, to the largest size within both, each side rounded
    to whole pixels (half up), bilinearly on 8-bit pixels; nothing is padded. 0 and 0 leave an image as it is. `mean`
    and `std` are for pixels in 0..1, one number a channel; one number means a greyscale model.
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
        if not all(std > 0 for std in self.std) or len(self.mean) != len(self.std):
            raise XCiTError(f"SegmentationPreprocessing: std is {self.std}, must be above 0, one number a channel")


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """Name, preprocessing, and class names in the order of the logits (empty when unknown)."""

    name: str
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...] = ()
