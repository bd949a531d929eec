"""Opens labelled images for training and validation: lists of images, or streams.

A list gives access to any of its images by index. A stream can only be read in order.
"""

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
"""A list or a stream of labelled images."""

DEFAULT_HOLDOUT = 0.2
"""The share of images that is held out for validation if `holdout` is None and a folder has no validation images."""


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """The training and validation images of a run.

    Attributes:
        train: the training images.
        watched: the validation images.
        holdout: number or share of the images that were held out for validation; 0 if no images were held out.
        notes: lines for the user about the data.
        problems: lines for the user about problems in the data.
    """

    train: LabelledData
    watched: LabelledData
    holdout: float
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def open_data(data: str, *, val_data: str, holdout: float | None, num_classes: int, class_map: str = "") -> OpenedData:
    """Opens the training and the validation images of a run.

    Args:
        data: the training images: a stream (see `open_stream`), or a folder or name (see `open_labelled_images`).
        val_data: the validation images, in the same form. "" means the validation split of `data`; a stream has no
            validation split.
        holdout: number of training images to hold out for validation. A number below 1 is a share of the images. With
            0, no image is held out. None holds out `DEFAULT_HOLDOUT` of a folder that has no validation images.
        num_classes: number of classes, if `data` is a stream without class names, or if the class map contains
            indices. 0 means the number of classes in the data.
        class_map: file of a class map (see `read_class_map`) for `data` and `val_data`; "" means that the names in the
            data are the classes.

    Raises:
        XCiTError: if the data do not exist, if the class map is wrong or is given for a stream, if a class of the
            validation images has no training images, if there is only one class, or if images are held out of a folder
            that has validation images.
    """
    mapping = read_class_map(class_map) if class_map else None
    if is_stream(data):
        if mapping is not None:
            raise XCiTError(f"{class_map}: a class map is for folders and lists; {data} is a stream")
        if holdout:
            raise XCiTError(f"holdout is {holdout:g}, but images can't be held out of a stream: set val_data")
        if not val_data:
            raise XCiTError(f"{data} is a stream: set val_data to the validation images")
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
            f"{len(kept)} of these images are held out for validation, {len(train)} are used for training "
            f"(holdout {holdout:g})"
        )
        return OpenedData(train=train, watched=kept, holdout=holdout, notes=(found, note), problems=problems_of(images))
    watched, line = _open_watched(val_data or data, images.class_ids, mapping)
    problems = dict.fromkeys([*problems_of(images), *(() if _is_streamed(watched) else problems_of(watched))])
    note = f"validated on {num_images_of(watched)} images{_in_source(watched)}"
    lines = (*problems, line) if line else tuple(problems)
    return OpenedData(train=images, watched=watched, holdout=0, notes=(found, note), problems=lines)


def open_measured(data: str, holdout: float, class_map: str = "") -> LabelledImages:
    """Opens the images for an evaluation: the validation split or, if `holdout` is not 0, the held-out images.

    The held-out images are the same as in a training run with this `holdout`.

    Raises:
        XCiTError: in the cases of `open_labelled_images`, `read_class_map`, `held_out` and `check_holdout`.
    """
    mapping = read_class_map(class_map) if class_map else None
    if holdout:
        check_holdout(data, holdout)
    images = open_labelled_images(data, "train" if holdout else "val")
    if mapping is not None:
        images = mapping.apply(images)
    return held_out(images, holdout)[1] if holdout else images


def check_holdout(data: str, holdout: float) -> None:
    """Checks that images may be held out of the data. `holdout` is only used in the error message.

    Raises:
        XCiTError: if the data are a folder that has validation images.
    """
    if Path(data).is_dir() and has_validation(data):
        raise XCiTError(
            f"holdout is {holdout:g}, but {data} has validation images, which would not be used: do not set "
            "holdout, or give only the folder of the training images"
        )


def held_out(images: LabelledImages, holdout: float) -> tuple[ImageSubset, ImageSubset]:
    """Splits images into training images and held-out images. The split does not depend on the run's seed.

    Args:
        images: all images.
        holdout: number of images to hold out. A number below 1 is a share of the images. If the images are files, a
            share applies to each class, and at least one image is held out of each class that has two or more images.

    Returns:
        The training images, and the held-out images.

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
                f"holdout is {holdout:g}, but must be a share below 1, or a whole number of images below {len(images)}"
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
        raise XCiTError("every class has one image, so none can be held out: set val_data to the validation images")
    return kept


def train_loader(
    data: LabelledData, transform: ImageTransform, config: LoaderConfig, *, shuffle_buffer: int
) -> TrainLoader[Tensor] | StreamTrainLoader:
    """Returns the loader of this process's training data. `shuffle_buffer` is only used for a stream."""
    if _is_streamed(data):
        return StreamTrainLoader(data, transform, config, shuffle_buffer=shuffle_buffer)
    return TrainLoader(data, transform, config)


def evaluation_batches_of(
    data: LabelledData, spec: Preprocessing, *, batch_size: int, num_workers: int, layout: Layout
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yields the batches of this process's share of the images, as `evaluation_batches` does.

    All processes together get each image once.
    """
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
