"""Classifies images, or extracts their features. Images can be paths, PIL images, arrays or tensors."""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcit.deploy import exported_or
from xcit.errors import XCiTError
from xcit.images.channels import preprocess_channels, read_channels
from xcit.images.preprocess import Preprocessing, preprocess
from xcit.images.read import ImageSource
from xcit.inference.full_size import FullSize, asked_full_size, features_each, logits_each
from xcit.inference.reading import Readable, Unreadable, collected, default_device, listed, read_ahead
from xcit.machine import find_device
from xcit.models import ModelInfo, XCiT
from xcit.models.xcit import FusedXCiT, OutType
from xcit.streaming.budget import Memory
from xcit.zoo import get_xcit
from xcit.zoo.kinds import CLASSIFIER

DEFAULT_MODEL = "xcit-pico-fashion-mnist"
"""The packaged model, which needs no download. Its classes are ten kinds of garments."""


@dataclass(frozen=True, kw_only=True)
class ScoredClass:
    """A class with its probability.

    Attributes:
        index: index of the class in the logits.
        name: name of the class; the index as text if the names are unknown.
        score: probability of the class, in 0..1.
    """

    index: int
    name: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of an image.

    The probabilities of a multi-label model are independent. In all other models, the probabilities of all classes add
    up to 1.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        classes: the classes, the most probable class first.
        model: name of the model.
    """

    source: str
    classes: tuple[ScoredClass, ...]
    model: str = ""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of an image.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        layers: features by block number, in the shapes of `XCiT.extract_feat` without the batch dimension.
    """

    source: str
    layers: dict[int, "np.ndarray[Any, np.dtype[np.float32]]"]


def predict(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    topk: int = 5,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: bool = False,
    memory: Memory = None,
    ignore_exif: bool = False,
) -> list[Prediction | Unreadable]:
    """Classifies images.

    Args:
        images: one or several images of any size: paths of files or folders (searched recursively), patterns such as
            "photos/**/*.jpg", PIL images, arrays (h, w, 3), tensors (3, h, w), or batches of arrays or tensors.
        model: a name (the published weights are downloaded at the first use), a weights file, or a model from
            `get_model`. For frequent calls, pass `model.fuse()`, because otherwise each call fuses the model.
        topk: number of classes per image.
        batch_size: number of images in a forward pass.
        device: device of the computation; None means the device of a model that is passed in, else a GPU if there is
            one, else the CPU.
        dtype: dtype of the computation: float32, bfloat16 or float16.
        full_size: process images of any size at their own size, without resizing or cropping.
        memory: with `full_size`: limit of the memory in addition to the loaded model, in bytes or as "4GB"; None means
            half of the free memory. Tokens that do not fit are written to scratch files (see `xcit.streaming.Budget`).
        ignore_exif: use the pixels as they are stored, without the rotation in the EXIF data.

    Returns:
        One prediction per image, in order. An image that can't be read is replaced by an `Unreadable` with the reason.

    Raises:
        XCiTError: if none of the images can be read, if the model can't be loaded, or if it has no classifier.
    """
    whole = asked_full_size(full_size, memory)
    results = predict_each(
        listed(images, ignore_exif=ignore_exif),
        model,
        topk=topk,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        full_size=whole,
    )
    return collected(results)


def predict_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    topk: int = 5,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: FullSize | None = None,
) -> Iterator[Prediction | Unreadable]:
    """Yields the results of `predict` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
    """
    network, info, place = prepare_model(model, device, dtype)
    if not network.num_classes:
        raise XCiTError(f"{info.name} has no classifier: it gives features only")
    if topk < 1:
        raise XCiTError(f"topk is {topk}, but must be at least 1")
    names = info.class_names or tuple(str(index) for index in range(network.num_classes))
    if full_size is not None:
        for result in logits_each(images, network, full_size):
            yield result if isinstance(result, Unreadable) else _prediction(*result, names, topk, info)
        return
    for sources, batch in _batches(images, info.preprocessing, batch_size):
        rows: Iterator[Tensor] = iter(())
        if batch is not None:
            with torch.inference_mode():
                rows = iter(network(batch.to(place, dtype)))
        for source in sources:
            yield source if isinstance(source, Unreadable) else _prediction(source, next(rows), names, topk, info)


def _prediction(source: str, logits: Tensor, names: Sequence[str], topk: int, info: ModelInfo) -> Prediction:
    """Returns the most probable classes from logits (num_classes,)."""
    logits = logits.float()
    scores = logits.sigmoid() if info.is_multi_label else logits.softmax(dim=-1)
    best = scores.topk(min(topk, len(names)))
    classes = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    found = tuple(ScoredClass(index=i, name=names[i], score=s) for s, i in classes)
    return Prediction(source=source, classes=found, model=info.name)


def extract_features(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    out_type: OutType | None = None,
    layers: Sequence[int] = (-1,),
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: bool = False,
    memory: Memory = None,
    ignore_exif: bool = False,
) -> list[Features | Unreadable]:
    """Extracts features of images.

    `out_type` and `layers` are the arguments `out_type` and `out_indices` of `XCiT.extract_feat`. If `out_type` is
    None, the result is the feature that the model pools: the class token, or the mean of the patch tokens. The other
    arguments are those of `predict`.

    Returns:
        One `Features` per image, in order. An image that can't be read is replaced by an `Unreadable` with the reason.

    Raises:
        XCiTError: if none of the images can be read, or the model can't be loaded.
    """
    results = extract_features_each(
        listed(images, ignore_exif=ignore_exif),
        model,
        out_type=out_type,
        layers=layers,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        full_size=asked_full_size(full_size, memory),
    )
    return collected(results)


def extract_features_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | XCiT = DEFAULT_MODEL,
    *,
    out_type: OutType | None = None,
    layers: Sequence[int] = (-1,),
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    full_size: FullSize | None = None,
) -> Iterator[Features | Unreadable]:
    """Yields the results of `extract_features` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
    """
    network, info, place = prepare_model(model, device, dtype)
    if out_type is None:
        out_type = "avg_featmap" if network.config.global_pool == "avg" else "cls_token"
    if full_size is not None:
        for result in features_each(images, network, out_type, layers, full_size):
            yield result if isinstance(result, Unreadable) else Features(source=result[0], layers=result[1])
        return
    num_blocks = network.config.depth + network.config.cls_depth
    indices = sorted({index % num_blocks for index in layers if -num_blocks <= index < num_blocks})
    for sources, batch in _batches(images, info.preprocessing, batch_size):
        rows: list[Any] = []
        if batch is not None:
            with torch.inference_mode():
                found = network.extract_feat(batch.to(place, dtype), out_type=out_type, out_indices=layers)
            rows = [tensor.float().cpu().numpy() for tensor in found]
        position = 0
        for source in sources:
            if isinstance(source, Unreadable):
                yield source
            else:
                yield Features(source=source, layers={i: row[position] for i, row in zip(indices, rows, strict=True)})
                position += 1


def find_model(model: str | os.PathLike[str] | XCiT) -> tuple[XCiT, ModelInfo]:
    """Returns a model and its info. If the model is given by its name, its published weights are loaded.

    Raises:
        XCiTError: if the model can't be loaded, or its preprocessing is unknown.
    """
    if isinstance(model, XCiT):
        if model.info is None:
            raise XCiTError(
                "the model has no preprocessing: load the model with xcit.get_model(..., pretrained=...), or set "
                "model.info"
            )
        return model, model.info
    built = exported_or(model, CLASSIFIER, lambda: get_xcit(model, pretrained=True))
    if built.info is None:
        raise XCiTError(
            f"{os.fspath(model)}: the file does not say how to prepare images; load it with "
            "xcit.get_model(NAME, pretrained=FILE), or set model.info"
        )
    return built, built.info


def prepare_model(
    model: str | os.PathLike[str] | XCiT, device: str | torch.device | None, dtype: torch.dtype
) -> tuple[XCiT, ModelInfo, torch.device]:
    """Returns three values: a fused model with the requested device and dtype, the info of the model, and the device.

    A model that is passed in is not changed.

    Raises:
        XCiTError: as in `find_model`.
    """
    found, info = find_model(model)
    parameter = next(found.parameters())
    default = parameter.device if found is model else default_device()
    place = find_device(device) if device is not None else default
    if isinstance(found, FusedXCiT) and (parameter.dtype != dtype or parameter.device != place):
        found = copy.deepcopy(found)
    return found.fuse().to(place, dtype), info, place


def _batches(
    images: Iterable[Readable], spec: Preprocessing, batch_size: int
) -> Iterator[tuple[list[str | Unreadable], Tensor | None]]:
    """Yields batches of images in order: their sources, and a tensor of the images that could be read.

    An image that can't be read has an `Unreadable` instead of a source. If no image of a batch can be read, the tensor
    is None.
    """
    if batch_size < 1:
        raise XCiTError(f"batch_size is {batch_size}, but must be at least 1")
    channels = len(spec.mean)
    if channels in (1, 3):
        results = read_ahead(images, partial(preprocess, spec=spec), num_ahead=2 * batch_size)
    else:
        read = partial(read_channels, num_channels=channels)
        results = read_ahead(images, partial(preprocess_channels, spec=spec), num_ahead=2 * batch_size, read=read)
    while batch := list(islice(results, batch_size)):
        sources = [result if isinstance(result, Unreadable) else result[0] for result in batch]
        tensors = [result[1] for result in batch if not isinstance(result, Unreadable)]
        yield sources, torch.stack(tensors) if tensors else None
