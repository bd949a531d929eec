"""Labelled images as a task wants them, whether they are a list or a stream: to train on, and to watch a run by."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xcit.data.classification import ImageSubset, LabelledImages, open_labelled_images
from xcit.data.loader import ImageTransform, LoaderConfig, TrainLoader, evaluation_batches
from xcit.data.stream_loader import StreamTrainLoader, stream_evaluation_batches
from xcit.data.streams import LabelledStream, is_stream, open_stream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.training.engine.task import Layout

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # typing's own from Python 3.13 on

LabelledData = LabelledImages | LabelledStream
"""A list of images, or a stream of them."""


def open_data(data: str, *, val_data: str, holdout: int, num_classes: int) -> tuple[LabelledData, LabelledData]:
    """Opens what to train on, and what to watch a run by.

    Args:
        data: as `open_stream` or `open_labelled_images` takes it.
        val_data: likewise; "" watches the validation split of `data`, which a stream does not have.
        holdout: images taken off the training split to watch the run by; 0 takes none.
        num_classes: of a stream without class names; 0 if that is to be found in the data.

    Raises:
        XCiTError: if there are no such data, or the two have different classes.
    """
    if is_stream(data):
        if holdout:
            raise XCiTError(f"holdout is {holdout}, but nothing can be taken off a stream: give val_data")
        if not val_data:
            raise XCiTError(f"{data} is a stream: say with val_data by what to watch the run")
        stream = open_stream(data, "train", num_classes=num_classes or None)
        return stream, _open_watched(val_data, stream.class_ids)
    images = open_labelled_images(data, "train")
    if holdout:
        return held_out(images, holdout)
    return images, _open_watched(val_data or data, images.class_ids)


def held_out(images: LabelledImages, holdout: int) -> tuple[ImageSubset, ImageSubset]:
    """What to train on, and the images that are taken off it: a fixed draw, so that runs of any seed can be compared.

    Raises:
        XCiTError: if there are not so many.
    """
    if not 0 < holdout < len(images):
        raise XCiTError(f"holdout is {holdout}, must be from 0 to fewer than the {len(images)} images there are")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    return ImageSubset(images, order[holdout:]), ImageSubset(images, order[:holdout])


def train_loader(
    data: LabelledData, transform: ImageTransform, config: LoaderConfig, *, shuffle_buffer: int
) -> TrainLoader[Tensor] | StreamTrainLoader:
    """The loader of this process's parts; see `TrainLoader` and `StreamTrainLoader`, which alone has the buffer."""
    if _is_streamed(data):
        return StreamTrainLoader(data, transform, config, shuffle_buffer=shuffle_buffer)
    return TrainLoader(data, transform, config)


def evaluation_batches_of(
    data: LabelledData, spec: Preprocessing, *, batch_size: int, num_workers: int, layout: Layout | None
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Batches of this process's share, so that all processes together see each image once; see `evaluation_batches`."""
    world_size, rank = (layout.world_size, layout.rank) if layout is not None else (1, 0)
    if _is_streamed(data):
        return stream_evaluation_batches(
            data, spec, batch_size=batch_size, num_workers=num_workers, world_size=world_size, rank=rank
        )
    share = data if world_size == 1 else ImageSubset(data, range(rank, len(data), world_size))
    return evaluation_batches(share, spec, batch_size=batch_size, num_workers=num_workers)


def num_images_of(data: LabelledData) -> int:
    """Images in a list or a stream."""
    return data.num_images if _is_streamed(data) else len(data)


def _open_watched(data: str, class_ids: tuple[str, ...]) -> LabelledData:
    watched: LabelledData
    if is_stream(data):
        watched = open_stream(data, "val", num_classes=len(class_ids))
    else:
        watched = open_labelled_images(data, "val")
    if watched.class_ids != class_ids:
        raise XCiTError(f"{data}: the training and the validation images have different classes")
    return watched


def _is_streamed(data: LabelledData) -> "TypeIs[LabelledStream]":
    return hasattr(data, "num_shards")
