"""Loads labelled images as batches of tensors: shuffled and augmented for training, in order for evaluation."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from xcit.data.classification import LabelledImages
from xcit.errors import XCiTError, check_field
from xcit.images.preprocess import Preprocessing, pixel_mode, preprocess
from xcit.seeding import mix_seeds, own_randomness, seed_all

ImageTransform = Callable[[Image.Image], Tensor]

Images = TypeVar("Images")
"""The output of a transform for an image, or of a loader for a batch: a tensor, or a list with a tensor per crop."""

Source = TypeVar("Source")
"""The input of a transform: an image, or an image with its label map."""

SourceGiven = TypeVar("SourceGiven", covariant=True)


class Samples(Protocol[SourceGiven]):
    """A list of inputs for a transform, each with a class index; `LabelledImages` is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[SourceGiven, int]: ...


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Augmentation of an image, and of a batch, in training.

    `crop` "random_resized" crops a share of the area between the bounds of `scale` and resizes it; "padded" shifts the
    image by up to `padding` pixels. `interpolation` is used by both. `rand_augment` is timm's name of a policy; ""
    turns RandAugment off. `mixup` and `cutmix` are the alphas of timm's Mixup; 0 turns one off. If both are on,
    `switch` is the share of batches with CutMix. `num_repeats` is the number of differently augmented copies of each
    image in an epoch; the epoch contains fewer images, so that its length stays the same.
    """

    crop: Literal["random_resized", "padded"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    padding: int = 4
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    rand_augment: str = ""
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    label_smoothing: float = 0.0
    num_repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("flip", "random_erasing", "switch", "label_smoothing"):
            check_field(self, name, 0 <= getattr(self, name) <= 1, "in 0..1")
        for name in ("padding", "color_jitter", "mixup", "cutmix"):
            check_field(self, name, getattr(self, name) >= 0, "0 or more")
        check_field(self, "num_repeats", self.num_repeats >= 1, "at least 1")
        check_field(self, "scale", 0 < self.scale[0] <= self.scale[1] <= 1, "two rising shares of the area, to 1")


def train_transform(config: AugmentationConfig, spec: Preprocessing) -> ImageTransform:
    """Returns a transform from an image to an augmented, normalised tensor (C, image_size, image_size)."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.random_erasing import RandomErasing
    from torchvision import transforms

    size, num_channels = spec.image_size, len(spec.mean)
    resampling = transforms.InterpolationMode(config.interpolation)
    steps: list[object] = [transforms.Grayscale() if pixel_mode(spec) == "L" else _to_rgb]
    if config.crop == "random_resized":
        steps.append(transforms.RandomResizedCrop(size, scale=config.scale, interpolation=resampling))
    else:
        steps += [transforms.Resize((size, size), resampling), transforms.RandomCrop(size, config.padding)]
    if config.flip:
        steps.append(transforms.RandomHorizontalFlip(config.flip))
    if config.rand_augment:
        mean = tuple(round(255 * m) for m in spec.mean)
        hyperparameters = {
            "img_mean": mean[0] if num_channels == 1 else mean,
            "translate_const": int(0.45 * size),  # timm's own limit
            "interpolation": Image.Resampling.BICUBIC,  # as published; timm's default is a random choice
        }
        try:
            policy = rand_augment_transform(config.rand_augment, hyperparameters)
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
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How a loader divides its images among processes, and reads them.

    Attributes:
        batch_size: global batch size, over all processes and parts.
        seed: seed of the order and of all other random draws.
        num_workers: number of processes that read, for each training process; with 0 the training process reads.
        num_parts: number of equal parts of a global batch.
        world_size: number of training processes; each computes `num_parts / world_size` parts of a global batch.
        rank: index of this process among them.
        num_repeats: number of copies of an image in a row (repeated augmentation, arXiv 1901.09335).
    """

    batch_size: int
    seed: int
    num_workers: int
    num_parts: int = 1
    world_size: int = 1
    rank: int = 0
    num_repeats: int = 1


class _Key(NamedTuple):
    """Identifies one draw of a training image: the epoch, the image, and the number of the copy."""

    epoch: int
    image: int
    repeat: int


NUM_SUBSTITUTES = 100
"""Number of images in a row that are tried in place of one that can't be read."""


Sample = tuple[Images, int, tuple[str, ...]]
"""An augmented image (C, h, w), its label, and one line for each unreadable image that it replaces."""


class _TrainImages(Dataset[Sample[Images]], Generic[Source, Images]):
    """Maps a key to an augmented image, its label, and lines about unreadable images.

    Random draws depend only on seed and key, so they are the same for any number of workers and processes, and after a
    resume. An unreadable image is replaced by the next image of the data set.
    """

    def __init__(self, images: Samples[Source], transform: Callable[[Source], Images], seed: int) -> None:
        self.images, self.seed = images, seed
        self.transform: Callable[[Source], Images] = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[_Key]) -> list[Sample[Images]]:
        # A worker has its own generators. In the main process the model uses the same ones, so they must not change.
        with nullcontext() if get_worker_info() else own_randomness():
            return [self[key] for key in keys]

    def __getitem__(self, key: _Key) -> Sample[Images]:
        image, label, unreadable = self._read(key.image)
        seed_all(self.seed, *key)
        return self.transform(image), label, unreadable

    def _read(self, index: int) -> tuple[Source, int, tuple[str, ...]]:
        unreadable: list[str] = []
        for substitute in range(min(len(self.images), NUM_SUBSTITUTES)):
            try:
                return *self.images[(index + substitute) % len(self.images)], tuple(unreadable)
            except XCiTError as error:
                unreadable.append(str(error))
        raise XCiTError(f"{len(unreadable)} images in a row can't be read; the first: {unreadable[0]}")


def collate(samples: Sequence[Sample[Images]]) -> tuple[Any, Tensor, list[str]]:
    """Collates images (B, C, h, w) (a list for several crops), labels (B,), and the lines about unreadable images."""
    images, labels, unreadable = zip(*samples, strict=True)
    whole = isinstance(images[0], Tensor)
    stacked = torch.stack(images) if whole else [torch.stack(crops) for crops in zip(*images, strict=True)]
    return stacked, torch.tensor(labels), [reason for reasons in unreadable for reason in reasons]


class _PartSampler(Sampler[list[_Key]]):
    """Yields the keys of one process's parts of an epoch's batches, from a step on.

    Part k of n contains every n-th image of a global batch, from the k-th on. Process r of w computes the parts r, r +
    w, and so on. The order follows from seed and epoch. With `num_repeats`, each image occurs that often in a row, and
    an epoch has the same length (repeated augmentation, arXiv 1901.09335; timm's sampler). So the copies of an image
    are in different parts.
    """

    def __init__(self, num_images: int, config: LoaderConfig, groups: Sequence[int] | None = None) -> None:
        self.num_images, self.config, self.groups = num_images, config, groups
        self.epoch, self.first_step = 0, 0

    @property
    def num_steps(self) -> int:
        return self.num_images // self.config.batch_size

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.config.num_parts // self.config.world_size

    def __iter__(self) -> Iterator[list[_Key]]:
        order = self._order()
        for step in range(self.first_step, self.num_steps):
            batch = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            for part in range(self.config.rank, self.config.num_parts, self.config.world_size):
                yield batch[part :: self.config.num_parts]

    def _order(self) -> list[_Key]:
        seed = mix_seeds(self.config.seed, self.epoch)
        if self.config.num_repeats == 1:
            order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed)).tolist()
            if self.groups is not None:
                order = self._grouped(order, self.groups)
            return [_Key(self.epoch, index, 0) for index in order]
        from timm.data.distributed_sampler import RepeatAugSampler

        # Without `selected_round` 0, timm would round an epoch down to a multiple of 256 images.
        sampler = RepeatAugSampler(
            range(self.num_images), num_replicas=1, rank=0, num_repeats=self.config.num_repeats, selected_round=0
        )
        sampler.set_epoch(seed)
        return [_Key(self.epoch, index, place % self.config.num_repeats) for place, index in enumerate(sampler)]

    def _grouped(self, order: Sequence[int], groups: Sequence[int]) -> list[int]:
        """Reorders images so that each part has images of one group; the last parts get the remaining images."""
        size, parts = self.config.batch_size // self.config.num_parts, list[list[int]]()
        waiting: dict[int, list[int]] = {}
        for index in order:
            own = waiting.setdefault(groups[index], [])
            own.append(index)
            if len(own) == size:
                parts.append(waiting.pop(groups[index]))
        left = [index for own in waiting.values() for index in own]
        parts += [left[start : start + size] for start in range(0, len(left) - size + 1, size)]
        batches = (
            parts[start : start + self.config.num_parts] for start in range(0, len(parts), self.config.num_parts)
        )
        return [part[place] for batch in batches for place in range(size) for part in batch]


class TrainLoader(Generic[Images]):
    """Shuffled batches (images (B, C, h, w), labels (B,)); order and random draws follow from seed and epoch.

    If a transform returns a list of crops, the images of a batch are a list too. With `groups` (one number per image),
    the images of a part belong to one group. `collate_fn` replaces `collate`.

    Attributes:
        num_steps: number of global batches per epoch; the remaining images are left out of this epoch.
        num_inputs: number of images that an epoch draws from.
        unreadable: one line for each image that could not be read so far, without duplicates.
    """

    def __init__(
        self,
        images: Samples[Source],
        transform: Callable[[Source], Images],
        config: LoaderConfig,
        *,
        groups: Sequence[int] | None = None,
        collate_fn: Callable[[Any], Any] = collate,
    ) -> None:
        self._sampler = _PartSampler(len(images), config, groups)
        self.num_steps, self.num_inputs = self._sampler.num_steps, len(images)
        self.unreadable: list[str] = []
        self._loader: DataLoader[Sample[Images]] = DataLoader(
            _TrainImages(images, transform, config.seed),
            batch_sampler=self._sampler,
            collate_fn=collate_fn,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            # The loader draws a number whenever workers start, and their starts differ between a run and its resume.
            # With a generator of its own, this does not change the model's random draws.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Images, Tensor]]:
        """Yields this process's parts of an epoch's batches, from a step on."""
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        return received_batches(self._loader, self.unreadable)

    def close(self) -> None:
        """Ends the processes that read."""
        end_workers(self._loader)


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends the processes that a loader keeps from epoch to epoch.

    At its exit, Python would send them SIGTERM, after which our workers continue for a while. If a reference cycle kept
    the loader alive until then, a successful run would wait for them and end with an error.
    """
    iterator = loader._iterator
    loader._iterator = None
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def received_batches(
    loader: Iterable[tuple[Images, Tensor, list[str]]], all_unreadable: list[str]
) -> Iterator[tuple[Images, Tensor]]:
    """Yields the images and labels of a loader, and adds new lines about unreadable images to a list."""
    try:
        for images, labels, unreadable in loader:
            all_unreadable += [reason for reason in unreadable if reason not in all_unreadable]
            yield images, labels
    except XCiTError as error:
        # A worker's error has its traceback in the message, and our own message at the end.
        raise XCiTError(error.args[0].rpartition(f"{XCiTError.__name__}: ")[2].rstrip()) from None


_SECONDS_AFTER_SIGTERM = 20
"""How long a worker continues after SIGTERM, so that the main process can finish its step and save."""


def prepare_worker(_: int) -> None:
    """Prepares a new worker process."""
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal. The main process then finishes its step and saves, for which it needs
    # its workers. A scheduler may also send SIGTERM to all of them; then a worker ends after some seconds. Ignoring
    # SIGTERM would hang a program that ends by an error, because Python then terminates the workers and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))


class EvaluationImages(Dataset[tuple[Tensor, int, str]]):
    """The results of `prepared` for a list of images."""

    def __init__(self, images: LabelledImages, spec: Preprocessing) -> None:
        self.images, self.spec = images, spec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return prepared(lambda: self.images[index], self.images.image_name(index), self.spec)


def prepared(read: Callable[[], tuple[Image.Image, int]], name: str, spec: Preprocessing) -> tuple[Tensor, int, str]:
    """Returns an image (C, h, w), its label and "", or if it can't be read, zeros, -1 and the reason."""
    try:
        image, label = read()
    except XCiTError as error:
        reason = str(error)
    else:
        try:
            return preprocess(image, spec), label, ""
        except XCiTError as error:
            reason = f"{name}: {error}"
    return torch.zeros(len(spec.mean), spec.image_size, spec.image_size), -1, reason


def evaluation_batches(
    images: LabelledImages, spec: Preprocessing, *, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yields batches in order, with each image once: (B, C, h, w), labels (B,), and reasons why images can't be read.

    An unreadable image is left out of its batch.
    """
    loader = DataLoader(
        EvaluationImages(images, spec), batch_size=batch_size, num_workers=num_workers, worker_init_fn=prepare_worker
    )
    return readable_batches(loader)


def readable_batches(
    loader: Iterable[tuple[Tensor, Tensor, Sequence[str]]],
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Removes unreadable images from the batches of `EvaluationImages`."""
    for batch, labels, reasons in loader:
        readable = labels >= 0
        yield batch[readable], labels[readable], [reason for reason in reasons if reason]
