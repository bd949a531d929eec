"""Labelled images as batches of tensors: for training shuffled and augmented, for evaluation in order, each once."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from xcit.data.classification import LabelledImages
from xcit.data.preprocess import pixel_mode, preprocess
from xcit.errors import XCiTError
from xcit.models import Preprocessing
from xcit.seeding import mix_seeds, own_randomness, seed_all

ImageTransform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What training does to an image, and to a batch.

    `crop` "random_resized" cuts out a share of the area in `scale` and resizes it; "padded" moves the image by up to
    `padding` pixels. `rand_augment` is timm's name of a policy, "" for none. `mixup` and `cutmix` are the alphas of
    timm's Mixup, 0 for none, each batch drawing one of the two.
    """

    crop: Literal["random_resized", "padded"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    padding: int = 4
    flip: float = 0.5
    rand_augment: str = ""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "random_erasing", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise XCiTError(f"AugmentationConfig: {name} is {getattr(self, name)}, must be in 0..1")
        for name in ("padding", "color_jitter", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise XCiTError(f"AugmentationConfig: {name} is {getattr(self, name)}, must be 0 or more")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise XCiTError(f"AugmentationConfig: scale is {self.scale}, must be two rising shares of the area, to 1")


def train_transform(config: AugmentationConfig, spec: Preprocessing) -> ImageTransform:
    """Image to augmented, normalised tensor (C, image_size, image_size); made of torchvision's and timm's parts."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.random_erasing import RandomErasing
    from torchvision import transforms

    size, num_channels = spec.image_size, len(spec.mean)
    bicubic = transforms.InterpolationMode.BICUBIC
    steps: list[object] = [transforms.Grayscale() if pixel_mode(spec) == "L" else _to_rgb]
    if config.crop == "random_resized":
        steps.append(transforms.RandomResizedCrop(size, scale=config.scale, interpolation=bicubic))
    else:
        steps += [transforms.Resize((size, size), interpolation=bicubic), transforms.RandomCrop(size, config.padding)]
    if config.flip:
        steps.append(transforms.RandomHorizontalFlip(config.flip))
    if config.rand_augment:
        mean = tuple(round(255 * m) for m in spec.mean)
        fill = mean[0] if num_channels == 1 else mean
        try:
            policy = rand_augment_transform(config.rand_augment, {"img_mean": fill, "translate_const": size // 3})
        except (AssertionError, ValueError):
            raise XCiTError(
                f"rand_augment is {config.rand_augment!r}, must be a policy of timm's such as 'rand-m9-mstd0.5-inc1'"
            ) from None
        steps.append(policy)
    if config.color_jitter:
        steps.append(transforms.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    if config.random_erasing:
        steps.append(RandomErasing(config.random_erasing, mode="pixel", device="cpu"))
    composed: ImageTransform = transforms.Compose(steps)
    return composed


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


class _TrainImages(Dataset[tuple[Tensor, int]]):
    """Augmented images by (epoch, index). The draws follow from seed, epoch and index alone, so they are the same for
    any number of workers, and after a resume.
    """

    def __init__(self, images: LabelledImages, transform: ImageTransform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.images[index]
        # A worker's generators are its own; in the main process the model draws from the same ones.
        with nullcontext() if get_worker_info() else own_randomness():
            seed_all(self.seed, epoch, index)
            return self.transform(image), label


class _ShuffledSampler(Sampler[tuple[int, int]]):
    """(epoch, index) of every image in an order that follows from seed and epoch."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed, self.epoch = num_images, seed, 0

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        for index in torch.randperm(self.num_images, generator=generator).tolist():
            yield self.epoch, index


class TrainLoader:
    """Shuffled batches (images (B, C, h, w), labels (B,)); the order and every draw follow from seed and epoch."""

    def __init__(
        self, images: LabelledImages, transform: ImageTransform, *, batch_size: int, seed: int, num_workers: int
    ) -> None:
        self._sampler = _ShuffledSampler(len(images), seed)
        self._loader = DataLoader(
            _TrainImages(images, transform, seed),
            batch_size=batch_size,
            sampler=self._sampler,
            drop_last=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
            # Its own, for the draw at each start of the workers would shift the model's: once a run, or once a resume.
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int) -> "TrainLoader":
        """The loader, set to an epoch."""
        self._sampler.epoch = epoch
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self._loader
        except XCiTError as error:
            # What a worker raises comes with its traceback in the message, our own message last.
            raise XCiTError(str(error).rpartition(f"{XCiTError.__name__}: ")[2].rstrip()) from None


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class _EvaluationImages(Dataset[tuple[Tensor, int, str]]):
    def __init__(self, images: LabelledImages, spec: Preprocessing) -> None:
        self.images, self.spec = images, spec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        try:
            image, label = self.images[index]
        except XCiTError as error:
            return self._nothing(str(error))
        try:
            return preprocess(image, self.spec), label, ""
        except XCiTError as error:
            return self._nothing(f"{self.images.image_name(index)}: {error}")

    def _nothing(self, reason: str) -> tuple[Tensor, int, str]:
        size = self.spec.image_size
        return torch.zeros(len(self.spec.mean), size, size), -1, reason


def evaluation_batches(
    images: LabelledImages, spec: Preprocessing, *, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Batches in order, each image once: (B, C, h, w), labels (B,), and why images of the batch can't be read.

    An unreadable image is left out of its batch.
    """
    loader = DataLoader(
        _EvaluationImages(images, spec), batch_size=batch_size, num_workers=num_workers, worker_init_fn=_one_thread
    )
    for batch, labels, reasons in loader:
        readable = labels >= 0
        yield batch[readable], labels[readable], [reason for reason in reasons if reason]
