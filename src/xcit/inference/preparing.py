"""Prepares models for inference: loads a model, checks its task, chooses a device, and changes the preprocessing."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from xcit.deploy import exported_or
from xcit.errors import XCiTError
from xcit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, SegmentationPreprocessing, published_preprocessing
from xcit.inference.reading import default_device
from xcit.machine import find_device
from xcit.models import ModelInfo, Segmenter, SegmenterInfo, XCiT
from xcit.zoo import check_task, get_model
from xcit.zoo.kinds import Config, Info, Kind, Model


def prepare_of_kind(
    kind: Kind[Config, Info, Model],
    model: str | os.PathLike[str] | nn.Module,
    device: str | torch.device | None,
    *,
    what: str = "the model",
) -> tuple[Model, torch.device]:
    """Returns a model of the requested kind, and the device for it. The model is neither moved to the device nor fused.

    Args:
        kind: classifier, segmenter or detector.
        model: a name (the published weights are downloaded at the first use), a weights file, or a model.
        device: None means the device of a model that is passed in, else a GPU if there is one, else the CPU.
        what: name of a model that is passed in, for error messages.

    Raises:
        XCiTError: if the model can't be loaded, or is of another kind.
    """
    built: Any = model
    if not isinstance(model, nn.Module):
        check_task(model, kind.task)
        what, built = os.fspath(model), exported_or(model, kind, lambda: get_model(model, pretrained=True))
    network = kind.require(built, what)
    if device is not None:
        return network, find_device(device)
    return network, next(network.parameters()).device if built is model else default_device()


def prepare_otherwise(
    model: nn.Module,
    name: str,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: int | None = None,
) -> None:
    """Changes the preprocessing of a model in place. Parts of the preprocessing that are None do not change.

    If the preprocessing of the model is unknown, parts that are None get common values: 224 pixels for a classifier,
    and ImageNet's mean and standard deviation for three channels. The preprocessing is then marked as assumed, unless
    all three parts are given.

    Args:
        model: a classifier, segmenter or detector.
        name: name of the model, if the model itself has no name.
        mean: one number per channel, or one for all, for pixels in 0..1.
        std: one number per channel, or one for all.
        size: side of a classifier's input, or short side of a segmenter's or detector's input, in pixels.

    Raises:
        XCiTError: if the values do not fit the model, or if more values are needed.
    """
    if mean is None and std is None and size is None:
        return
    network: Any = model
    if not isinstance(model, XCiT | Segmenter):
        network.config = network.config.prepared(mean=mean, std=std, size=size)
        return
    info: Any = network.info
    if info is None:
        channels = (model.config if isinstance(model, XCiT) else model.config.backbone).in_channels
        if channels != 3 and (mean is None or std is None):
            raise XCiTError(
                f"{name}: it is not known how to prepare images of {channels} channels: give both mean and std"
            )
        usual = IMAGENET_MEAN, IMAGENET_STD
        means, stds = usual if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
        if isinstance(model, XCiT):
            spec = replace(published_preprocessing("official", 224), mean=means, std=stds)
            info = ModelInfo(name=name, preprocessing=spec, assumed=True)
        else:
            dense = SegmentationPreprocessing(mean=means, std=stds)
            info = SegmenterInfo(name=name, preprocessing=dense, assumed=True)
    is_told = mean is not None and std is not None and size is not None
    prepared = info.preprocessing.changed(mean=mean, std=std, size=size)
    network.info = replace(info, preprocessing=prepared, assumed=info.assumed and not is_told)
