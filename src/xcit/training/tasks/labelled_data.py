"""Labelled images as a task wants them, whether they are a list or a stream: to train on, and to watch a run by."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    from typing_extensions import TypeIs  # typing's own from Python 3.13 on

LabelledData = LabelledImages | LabelledStream
"""A list of images, or a stream of them."""

DEFAULT_HOLDOUT = 0.2
"""Share of a folder's images that a run is watched by, where it has no others and the recipe leaves it open."""


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """What a run takes its images from.

    Attributes:
        train: to train on.
        watched: to watch the run by.
        holdout: how many of the training images that took, a number or a share; 0 where none.
        notes: lines that say what was found.
        problems: lines about what is not as it should be.
    """

    train: LabelledData
    watched: LabelledData
    holdout: float
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def open_data(data: str, *, val_data: str, holdout: float | None, num_classes: int) -> OpenedData:
    """Opens what to train on, and what to watch a run by.

    Args:
        data: as `open_stream` or `open_labelled_images` takes it.
        val_data: likewise; "" watches the validation split of `data`, which a stream does not have.
        holdout: images taken off the training split to watch the run by, a number, or below 1 a share; 0 takes none,
            and none takes `DEFAULT_HOLDOUT` of a folder that has nothing else to watch a run by.
        num_classes: of a stream without class names; 0 if that is to be found in the data.

    Raises:
        XCiTError: if there are no such data, the validation images have a class that the others have not, there is one
            class, or images are to be held out of a folder that has some to measure on.
    """
    if is_stream(data):
        if holdout:
            raise XCiTError(f"holdout is {holdout:g}, but nothing can be taken off a stream: give val_data")
        if not val_data:
            raise XCiTError(f"{data} is a stream: say with val_data by what to watch the run")
        stream = open_stream(data, "train", num_classes=num_classes or None)
        watched, line = _open_watched(val_data, stream.class_ids)
        return OpenedData(train=stream, watched=watched, holdout=0, notes=(), problems=(line,) if line else ())
    if holdout is None:
        holdout = DEFAULT_HOLDOUT if not val_data and is_folder_without_validation(data) else 0
    images = open_labelled_images(data, "train")
    check_classes(images.class_ids, getattr(images, "source", "") or data)
    found = f"found {describe_classes(images)}"
    if holdout:
        check_holdout(data, holdout)
        train, kept = held_out(images, holdout)
        note = (
            f"{len(kept)} of them are held out to watch the run by, {len(train)} are trained on (holdout {holdout:g})"
        )
        return OpenedData(train=train, watched=kept, holdout=holdout, notes=(found, note), problems=problems_of(images))
    watched, line = _open_watched(val_data or data, images.class_ids)
    problems = dict.fromkeys([*problems_of(images), *(() if _is_streamed(watched) else problems_of(watched))])
    note = f"watched by {num_images_of(watched)} images{_in_source(watched)}"
    lines = (*problems, line) if line else tuple(problems)
    return OpenedData(train=images, watched=watched, holdout=0, notes=(found, note), problems=lines)


def open_measured(data: str, holdout: float) -> LabelledImages:
    """The images of a data set to measure on: those to validate by, or those that a run with this holdout kept.

    Raises:
        XCiTError: as `open_labelled_images`, `held_out` and `check_holdout`.
    """
    if not holdout:
        return open_labelled_images(data, "val")
    check_holdout(data, holdout)
    return held_out(open_labelled_images(data, "train"), holdout)[1]


def check_holdout(data: str, holdout: float) -> None:
    """Refuses to hold images out of a folder that has others to measure on.

    Raises:
        XCiTError: if it has.
    """
    if Path(data).is_dir() and has_validation(data):
        raise XCiTError(
            f"holdout is {holdout:g}, but {data} has images to validate by, which would go unused: leave holdout out, "
            "or give the folder of the training images alone"
        )


def held_out(images: LabelledImages, holdout: float) -> tuple[ImageSubset, ImageSubset]:
    """What to train on, and the images that are taken off it: a fixed draw, so that runs of any seed can be compared.

    Args:
        images: all there are.
        holdout: how many, or below 1 a share of them: of files by class of each class, and of a class of two or more
            at least one.

    Raises:
        XCiTError: if there are not so many.
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
    """The loader of this process's parts; see `TrainLoader` and `StreamTrainLoader`, which alone has the buffer."""
    if _is_streamed(data):
        return StreamTrainLoader(data, transform, config, shuffle_buffer=shuffle_buffer)
    return TrainLoader(data, transform, config)


def evaluation_batches_of(
    data: LabelledData, spec: Preprocessing, *, batch_size: int, num_workers: int, layout: Layout
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Batches of this process's share, so that all processes together see each image once; see `evaluation_batches`."""
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
    """Images in a list or a stream."""
    return data.num_images if _is_streamed(data) else len(data)


def _open_watched(data: str, class_ids: tuple[str, ...]) -> tuple[LabelledData, str]:
    if not is_stream(data):
        return measured_by(open_labelled_images(data, "val"), class_ids, data)
    stream = open_stream(data, "val", num_classes=len(class_ids))
    if stream.class_ids != class_ids:
        raise XCiTError(f"{data}: the training and the validation images have different classes")
    return stream, ""


def _in_source(data: LabelledData) -> str:
    source = getattr(data, "source", "")
    return f" in {source}" if source else ""


def _is_streamed(data: LabelledData) -> "TypeIs[LabelledStream]":
    return hasattr(data, "num_shards")
