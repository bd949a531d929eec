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
"""The output of a transform for one image, or of a loader for a batch: a tensor, or a list of one tensor per crop."""

Source = TypeVar("Source")
"""The input of a transform: an image, or an image with its label map."""

SourceGiven = TypeVar("SourceGiven", covariant=True)


class Samples(Protocol[SourceGiven]):
    """A list of inputs for a transform, each with a class index. `LabelledImages` is such a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[SourceGiven, int]: ...


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Augmentation of images and batches in training.

    Attributes:
        crop: "random_resized" crops a random part of the image and resizes this part; "padded" resizes the image and
            shifts it by up to `padding` pixels.
        scale: for "random_resized", the smallest and largest share of the image's area that the crop covers.
        padding: for "padded", the largest shift in pixels.
        interpolation: the interpolation with which images are resized.
        flip: probability that an image is mirrored.
        rand_augment: a RandAugment policy in timm's notation; "" turns RandAugment off.
        color_jitter: largest relative change of brightness, contrast and saturation; 0 turns it off.
        random_erasing: probability that a rectangle of the image is replaced by noise.
        mixup: alpha of Mixup; 0 turns Mixup off.
        cutmix: alpha of CutMix; 0 turns CutMix off.
        switch: if both Mixup and CutMix are on, the share of batches with CutMix.
        label_smoothing: share of the target that is divided equally among all classes.
        num_repeats: number of copies of each image in an epoch, with a different augmentation for each copy. The epoch
            then has fewer different images, so that its length stays the same.
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
        check_field(
            self,
            "scale",
            0 < self.scale[0] <= self.scale[1] <= 1,
            "two numbers above 0 and at most 1, the smaller one first",
        )


def train_transform(config: AugmentationConfig, spec: Preprocessing) -> ImageTransform:
    """Returns a transform that converts an image to an augmented, normalised tensor (C, image_size, image_size)."""
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
            "translate_const": int(0.45 * size),  # the largest shift, as in timm
            "interpolation": Image.Resampling.BICUBIC,  # as in the published code; by default, timm chooses at random
        }
        try:
            policy = rand_augment_transform(config.rand_augment, hyperparameters)
        except (AssertionError, ValueError):
            raise XCiTError(
                f"rand_augment is {config.rand_augment!r}, but must be a policy of timm, such as 'rand-m9-mstd0.5'"
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
    """Settings of a loader: how it reads images and divides them among processes.

    Attributes:
        batch_size: global batch size: the number of images in a step, in all processes together.
        seed: seed of the order of the images and of all other random numbers.
        num_workers: number of worker processes that read images, per training process. If 0, the training process
            itself reads the images.
        num_parts: number of equal parts into which each global batch is divided.
        world_size: number of training processes. Each of them computes `num_parts / world_size` parts of a global
            batch.
        rank: index of this process among the training processes.
        num_repeats: number of successive copies of each image (repeated augmentation, arXiv 1901.09335).
    """

    batch_size: int
    seed: int
    num_workers: int
    num_parts: int = 1
    world_size: int = 1
    rank: int = 0
    num_repeats: int = 1


class _Key(NamedTuple):
    """Identifies one use of a training image: the epoch, the index of the image, and the number of the copy."""

    epoch: int
    image: int
    repeat: int


NUM_SUBSTITUTES = 100
"""If an image can't be read, the next images are tried instead. This is the largest number of images that are tried."""


Sample = tuple[Images, int, tuple[str, ...]]
"""An augmented image (C, h, w), its label, and one message for each unreadable image that it replaces."""


class _TrainImages(Dataset[Sample[Images]], Generic[Source, Images]):
    """A data set that maps a `_Key` to a `Sample`.

    All random numbers depend only on the seed and the key. So they do not change if the number of workers or processes
    is different, or if a run is resumed. An unreadable image is replaced by the next image of the data set.
    """

    def __init__(self, images: Samples[Source], transform: Callable[[Source], Images], seed: int) -> None:
        self.images, self.seed = images, seed
        self.transform: Callable[[Source], Images] = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[_Key]) -> list[Sample[Images]]:
        # A worker has its own random generators. In the main process, the model uses the same generators as this
        # function, so their states must be restored.
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
        raise XCiTError(f"{len(unreadable)} successive images can't be read; the first: {unreadable[0]}")


def collate(samples: Sequence[Sample[Images]]) -> tuple[Any, Tensor, list[str]]:
    """Collates samples to images (B, C, h, w), labels (B,), and a list of messages about unreadable images.

    If the transform returns several crops, the images are a list of one tensor per crop.
    """
    images, labels, unreadable = zip(*samples, strict=True)
    whole = isinstance(images[0], Tensor)
    stacked = torch.stack(images) if whole else [torch.stack(crops) for crops in zip(*images, strict=True)]
    return stacked, torch.tensor(labels), [reason for reasons in unreadable for reason in reasons]


class _PartSampler(Sampler[list[_Key]]):
    """A sampler that yields the keys of one process, in one list per part of a global batch.

    It yields the parts of all batches of the epoch `epoch`, from the batch with the number `first_step`. If a batch has
    n parts, part k contains every n-th image of the batch, from image k. If there are w processes, process r computes
    the parts r, r + w, and so on. The order of the images depends only on the seed and the epoch.

    With repeated augmentation (`num_repeats`; arXiv 1901.09335, timm's sampler), the copies of an image follow each
    other, so they are in different parts if there are enough parts. The number of keys in an epoch does not change.
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

        # By default, timm rounds the length of an epoch down to a multiple of 256 images; `selected_round=0` does not.
        sampler = RepeatAugSampler(
            range(self.num_images), num_replicas=1, rank=0, num_repeats=self.config.num_repeats, selected_round=0
        )
        sampler.set_epoch(seed)
        return [_Key(self.epoch, index, place % self.config.num_repeats) for place, index in enumerate(sampler)]

    def _grouped(self, order: Sequence[int], groups: Sequence[int]) -> list[int]:
        """Reorders images so that each part contains images of one group only. Returns indices of images.

        The exception is the last parts. They are made of the images that remain because their group had too few images
        left to fill another part. If these images do not fill the last part, the last part is left out.
        """
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
    """A loader of shuffled batches for training: images (B, C, h, w) and labels (B,).

    The order of the images and all random numbers depend only on the seed and the epoch. If the transform returns a
    list of crops, the images of a batch are a list of one tensor per crop.

    Args:
        images: the images to load.
        transform: a transform from an image to a tensor or to a list of crops.
        config: settings of the loader.
        groups: the group number of each image. If given, each part contains images of one group only, except the last
            parts of an epoch.
        collate_fn: the function that makes a batch from a list of samples.

    Attributes:
        num_steps: number of global batches per epoch. Images that do not fill a batch are left out of the epoch.
        num_inputs: number of images in the data set.
        unreadable: one message for each image that could not be read so far, without duplicates.
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
            # torch's loader draws a random number whenever it starts its workers, and a resumed run starts them at
            # other times. With a separate generator, these draws do not change the random numbers of the model.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Images, Tensor]]:
        """Yields this process's parts of the batches of an epoch, from the batch with the number `first_step`."""
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        return received_batches(self._loader, self.unreadable)

    def close(self) -> None:
        """Ends the worker processes."""
        end_workers(self._loader)


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends the worker processes of a loader, because they do not end by themselves after the last epoch.

    Without this call, a reference cycle may keep the loader and its workers alive until Python exits. Python then
    sends SIGTERM to the workers, but our workers continue for some seconds after SIGTERM (see `prepare_worker`). So a
    successful run would wait for the workers, and end with an error.
    """
    iterator = loader._iterator
    loader._iterator = None
    if iterator is not None:
        iterator._shutdown_workers()  # type: ignore[attr-defined]


def received_batches(
    loader: Iterable[tuple[Images, Tensor, list[str]]], all_unreadable: list[str]
) -> Iterator[tuple[Images, Tensor]]:
    """Yields the images and labels of a loader, and adds new messages about unreadable images to `all_unreadable`.

    Raises:
        XCiTError: if too many successive images can't be read.
    """
    try:
        for images, labels, unreadable in loader:
            all_unreadable += [reason for reason in unreadable if reason not in all_unreadable]
            yield images, labels
    except XCiTError as error:
        # torch puts the traceback of a worker into the message of its error. Our own message is at the end.
        raise XCiTError(error.args[0].rpartition(f"{XCiTError.__name__}: ")[2].rstrip()) from None


_SECONDS_AFTER_SIGTERM = 20
"""Number of seconds that a worker continues after SIGTERM, so that the main process can finish its step and save."""


def prepare_worker(_: int) -> None:
    """Prepares a new worker process: limits it to one thread, and sets how it reacts to signals."""
    torch.set_num_threads(1)
    # Ctrl-C sends SIGINT to every process of a terminal. The main process then finishes its step and saves. The main
    # process needs its workers until then, so the workers ignore SIGINT. A scheduler may send SIGTERM to all processes;
    # a worker then ends after some seconds. Workers must not ignore SIGTERM: if a program fails, Python sends SIGTERM
    # to the workers and waits until they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))


class EvaluationImages(Dataset[tuple[Tensor, int, str]]):
    """A data set of images that are preprocessed for evaluation, see `prepared`."""

    def __init__(self, images: LabelledImages, spec: Preprocessing) -> None:
        self.images, self.spec = images, spec

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return prepared(lambda: self.images[index], self.images.image_name(index), self.spec)


def prepared(read: Callable[[], tuple[Image.Image, int]], name: str, spec: Preprocessing) -> tuple[Tensor, int, str]:
    """Reads and preprocesses an image.

    Returns:
        The image (C, image_size, image_size), its label and "". If the image can't be read: zeros of the same shape, -1
        and the reason.
    """
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
    """Yields each image once, in order, in batches.

    A batch consists of images (B, C, h, w), labels (B,), and a list of reasons why images can't be read. Unreadable
    images are left out of the batch.
    """
    loader = DataLoader(
        EvaluationImages(images, spec), batch_size=batch_size, num_workers=num_workers, worker_init_fn=prepare_worker
    )
    return readable_batches(loader)


def readable_batches(
    loader: Iterable[tuple[Tensor, Tensor, Sequence[str]]],
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yields the batches of `EvaluationImages` without the unreadable images, which have the label -1."""
    for batch, labels, reasons in loader:
        readable = labels >= 0
        yield batch[readable], labels[readable], [reason for reason in reasons if reason]
