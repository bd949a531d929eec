"""Labelled images for training and validation, from a list or a stream."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xcit.data.class_map import ClassMap, numbered, read_class_map
from xcit.data.classification import (
    ImageFiles,
    ImageSubset,
    LabelledImages,
    describe_classes,
    has_validation,
    is_folder_without_validation,
    measured_by,
    open_labelled_images,
    problems_of,
)
from xcit.data.loader import ImageTransform, LoaderConfig, TrainLoader, evaluation_batches
from xcit.data.splits import check_classes
from xcit.data.stream_loader import StreamTrainLoader, stream_evaluation_batches
from xcit.data.streams import LabelledStream, is_stream, open_stream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.training.engine.task import Layout

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # in `typing` from Python 3.13 on

LabelledData = LabelledImages | LabelledStream
"""A list of images, or a stream of them."""

DEFAULT_HOLDOUT = 0.2
"""Share of a folder's images that is held out, if it has no validation images and the recipe leaves it open."""


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """The images of a run.

    Attributes:
        train: the images to train on.
        watched: the images to validate with.
        holdout: how many training images were held out for validation, a number or a share; 0 if none were.
        notes: lines about the data that were found.
        problems: lines about problems in the data.
    """

    train: LabelledData
    watched: LabelledData
    holdout: float
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def open_data(data: str, *, val_data: str, holdout: float | None, num_classes: int, class_map: str = "") -> OpenedData:
    """Opens the training and the validation images of a run.

    Args:
        data: see `open_stream` or `open_labelled_images`.
        val_data: the same for validation; "" means the validation split of `data`, which a stream does not have.
        holdout: number of training images that are held out for validation, or their share if it is below 1. With 0, no
            image is held out. None holds out `DEFAULT_HOLDOUT` of a folder that has no validation images.
        num_classes: number of classes of a stream without class names, or of a class map to indices; 0 if the data
            contain this number.
        class_map: the file of a `ClassMap` for both; "" takes the classes by their names in the data.

    Raises:
        XCiTError: if there are no such data, if the class map is wrong or given for a stream, if validation images have
            a class that training images lack, if there is only one class, or if images are held out of a folder that
            has validation images.
    """
    mapping = read_class_map(class_map) if class_map else None
    if is_stream(data):
        if mapping is not None:
            raise XCiTError(f"{class_map}: a class map is for folders and lists; {data} is a stream")
        if holdout:
            raise XCiTError(f"holdout is {holdout:g}, but nothing can be taken off a stream: give val_data")
        if not val_data:
            raise XCiTError(f"{data} is a stream: say with val_data by what to watch the run")
        stream = open_stream(data, "train", num_classes=num_classes or None)
        watched, line = _open_watched(val_data, stream.class_ids, mapping)
        return OpenedData(train=stream, watched=watched, holdout=0, notes=(), problems=(line,) if line else ())
    if holdout is None:
        holdout = DEFAULT_HOLDOUT if not val_data and is_folder_without_validation(data) else 0
    images = open_labelled_images(data, "train")
    if mapping is not None:
        images = numbered(mapping.apply(images), num_classes, class_map)
    check_classes(images.class_ids, getattr(images, "source", "") or data)
    found = f"found {describe_classes(images)}"
    if holdout:
        check_holdout(data, holdout)
        train, kept = held_out(images, holdout)
        note = (
            f"{len(kept)} of them are held out to watch the run by, {len(train)} are trained on (holdout {holdout:g})"
        )
        return OpenedData(train=train, watched=kept, holdout=holdout, notes=(found, note), problems=problems_of(images))
    watched, line = _open_watched(val_data or data, images.class_ids, mapping)
    problems = dict.fromkeys([*problems_of(images), *(() if _is_streamed(watched) else problems_of(watched))])
    note = f"watched by {num_images_of(watched)} images{_in_source(watched)}"
    lines = (*problems, line) if line else tuple(problems)
    return OpenedData(train=images, watched=watched, holdout=0, notes=(found, note), problems=lines)


def open_measured(data: str, holdout: float, class_map: str = "") -> LabelledImages:
    """Opens the images to measure on: the validation split, or the training images held out by a run with `holdout`.

    Raises:
        XCiTError: as in `open_labelled_images`, `read_class_map`, `held_out` and `check_holdout`.
    """
    mapping = read_class_map(class_map) if class_map else None
    if holdout:
        check_holdout(data, holdout)
    images = open_labelled_images(data, "train" if holdout else "val")
    if mapping is not None:
        images = mapping.apply(images)
    return held_out(images, holdout)[1] if holdout else images


def check_holdout(data: str, holdout: float) -> None:
    """Checks that images are not held out of a folder that has validation images.

    Raises:
        XCiTError: if images are held out although there are validation images.
    """
    if Path(data).is_dir() and has_validation(data):
        raise XCiTError(
            f"holdout is {holdout:g}, but {data} has validation images, which would not be used: leave holdout out, "
            "or give only the folder of the training images"
        )


def held_out(images: LabelledImages, holdout: float) -> tuple[ImageSubset, ImageSubset]:
    """Splits images into those to train on and those that are held out; the split does not depend on the run's seed.

    Args:
        images: all images.
        holdout: number of images to hold out. A number below 1 is a share. From image files, this share of each class
            is held out, and at least one image of each class that has two or more.

    Raises:
        XCiTError: if there are too few images.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    if 0 < holdout < 1 and isinstance(images, ImageFiles):
        kept = _share_of_classes(images, order, holdout)
    else:
        count = round(holdout * len(images)) if 0 < holdout < 1 else holdout
        if count != int(count) or not 0 < count < len(images):
            raise XCiTError(
                f"holdout is {holdout:g}, must be from 0 to fewer than the {len(images)} images there are, or a share "
                "below 1"
            )
        kept = order[: int(count)]
    is_kept = set(kept)
    return ImageSubset(images, [index for index in order if index not in is_kept]), ImageSubset(images, kept)


def _share_of_classes(images: ImageFiles, order: list[int], share: float) -> list[int]:
    of_class = Counter(label for _, label in images.items)
    left = {label: min(count - 1, max(1, round(share * count))) for label, count in of_class.items()}
    kept = []
    for index in order:
        label = images.items[index][1]
        if left[label] > 0:
            left[label] -= 1
            kept.append(index)
    if not kept:
        raise XCiTError("every class has one image: none can be held out; give images to measure on, with val_data")
    return kept


def train_loader(
    data: LabelledData, transform: ImageTransform, config: LoaderConfig, *, shuffle_buffer: int
) -> TrainLoader[Tensor] | StreamTrainLoader:
    """Returns the loader of this process's parts; the buffer is only for `StreamTrainLoader`."""
    if _is_streamed(data):
        return StreamTrainLoader(data, transform, config, shuffle_buffer=shuffle_buffer)
    return TrainLoader(data, transform, config)


def evaluation_batches_of(
    data: LabelledData, spec: Preprocessing, *, batch_size: int, num_workers: int, layout: Layout
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yields batches of this process's share; all processes together see each image once. See `evaluation_batches`."""
    if _is_streamed(data):
        return stream_evaluation_batches(
            data,
            spec,
            batch_size=batch_size,
            num_workers=num_workers,
            world_size=layout.world_size,
            rank=layout.rank,
        )
    share = data if layout.world_size == 1 else ImageSubset(data, layout.share(len(data)))
    return evaluation_batches(share, spec, batch_size=batch_size, num_workers=num_workers)


def num_images_of(data: LabelledData) -> int:
    """Returns the number of images in a list or a stream."""
    return data.num_images if _is_streamed(data) else len(data)


def _open_watched(data: str, class_ids: tuple[str, ...], mapping: ClassMap | None) -> tuple[LabelledData, str]:
    if not is_stream(data):
        images = open_labelled_images(data, "val")
        return measured_by(images if mapping is None else mapping.apply(images), class_ids, data)
    if mapping is not None:
        raise XCiTError(f"{mapping.source}: a class map is for folders and lists; {data} is a stream")
    stream = open_stream(data, "val", num_classes=len(class_ids))
    if stream.class_ids != class_ids:
        raise XCiTError(f"{data}: the training and the validation images have different classes")
    return stream, ""


def _in_source(data: LabelledData) -> str:
    source = getattr(data, "source", "")
    return f" in {source}" if source else ""


def _is_streamed(data: LabelledData) -> "TypeIs[LabelledStream]":
    return hasattr(data, "num_shards")
