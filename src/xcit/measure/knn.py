"""Measures a model's features by nearest neighbours, without any training, for `xcit knn`.

This is DINO's protocol (arXiv 2104.14294): the features of both splits are L2-normalised. For each validation image,
the k most similar training images vote, and the weight of a vote is exp(similarity / temperature).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.data.classification import LabelledImages
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.inference.classify import prepare_model
from xcit.inference.reading import default_device
from xcit.machine import find_device
from xcit.measure.listening import listening
from xcit.models import XCiT
from xcit.training.engine.config import RunConfig
from xcit.training.engine.distribution import Processes, num_started_processes
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.labelled_features import check_pooled, extract, feature_cache, open_train_and_val

KS = (10, 20, 100, 200)
"""The published numbers of neighbours."""

TEMPERATURE = 0.07

_MAX_SIMILARITIES = 2**25
"""Number of elements of a chunk's similarity matrix, which then takes an eighth of a gigabyte."""

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

Array = Tensor | np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class KNNAccuracy:
    """Results with k neighbours: numbers of correctly classified images, and the same in percent.

    For top-5, an image counts as correct if its class is among the first five, or among the first k if k is below 5.
    """

    k: int
    num_right1: int
    num_right5: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class KNNReport:
    """Results of a k-NN classification.

    Attributes:
        accuracies: results, one per k, in the order of the request.
        temperature: temperature of the votes.
        num_train: number of training images, among which neighbours were searched.
        num_val: number of images that were classified.
        unreadable: one line for each image of either split that could not be read, and so was left out.
        preprocessing: the preprocessing, if images were read.
        model: the model of the features, if there was one.
    """

    accuracies: tuple[KNNAccuracy, ...]
    temperature: float
    num_train: int
    num_val: int
    unreadable: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    model: str = ""

    @property
    def best(self) -> KNNAccuracy:
        """The result with the highest top-1; if several are equal, the first of them."""
        return max(self.accuracies, key=lambda accuracy: accuracy.num_right1)


def evaluate_knn(
    model: str | os.PathLike[str] | XCiT,
    data: str | tuple[LabelledImages, LabelledImages],
    *,
    ks: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    holdout: float = 0,
    class_map: str | os.PathLike[str] = "",
    cache: bool = True,
    batch_size: int = 128,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    started: Callable[[int], None] | None = None,
    report: Callable[[int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> KNNReport:
    """Measures a model's features on a data set by nearest neighbours, in one process or in those of torchrun.

    The feature is the one that a classifier's head reads (see `pooled_feature`). Images are prepared as the model's
    `info` says.

    Args:
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`.
        data: a folder with train/<class>/<image> and val/<class>/<image>, or a known name (see
            `open_labelled_images`); or the two splits themselves.
        ks: numbers of neighbours; None takes those of 10, 20, 100 and 200 that do not exceed the number of training
            images.
        temperature: temperature of the votes.
        holdout: classify images that are taken from the training images, given as a number, or as a share if below 1.
            They are the ones that training with this `holdout` leaves out.
        class_map: a file that says which classes are meant by the names in the data (see `read_class_map`).
        cache: whether features are stored in `feature_cache()` and read from there.
        batch_size: images per forward pass, in each process.
        num_workers: number of processes that read images, for each process.
        device: where to compute; None means a GPU if there is one, else the CPU.
        dtype: float32, or bfloat16 or float16 for autocast; the search for neighbours is in float32.
        started: called once with the number of images of this process.
        report: called with the number of images of each batch of this process.
        announce: called with lines for the user, in the main process. Without these three arguments, a progress bar is
            shown if standard error is a terminal, with the lines above it.

    Raises:
        XCiTError: if the data or the model can't be loaded, the model's preprocessing is unknown, no image can be read,
            or k exceeds the number of training images.
    """
    if dtype not in _DTYPES:
        raise XCiTError(f"dtype is {dtype}, must be torch.float32, torch.bfloat16 or torch.float16")
    found_lines: list[str] = []  # printed once all arguments are known to be right
    if isinstance(data, str):
        train, val = open_train_and_val(data, holdout, found_lines.append, class_map=os.fspath(class_map))
    elif class_map:
        raise XCiTError("a class map is for data that are opened here: map the two splits yourself")
    else:
        train, val = data
    _check(ks, temperature, len(train))
    run = RunConfig(batch_size=batch_size * num_started_processes(), dtype=_DTYPES[dtype], num_workers=num_workers)
    processes = Processes(run, find_device(device) if device is not None else default_device())
    try:
        with listening("features", started, report, announce) as listener:
            network, info, _ = prepare_model(model, processes.device, torch.float32)
            check_pooled(network)
            for line in found_lines if processes.is_main else ():
                listener.announce(line)
            listener.started(sum(len(processes.layout.share(len(images))) for images in (train, val)))
            found = [
                extract(
                    network,
                    images,
                    info.preprocessing,
                    processes,
                    run=run,
                    cache=feature_cache() if cache else None,
                    report=listener.report,
                    announce=listener.announce,
                )
                for images in (train, val)
            ]
        figures = knn_accuracies(
            found[0].features,
            found[0].labels,
            found[1].features,
            found[1].labels,
            ks=ks,
            temperature=temperature,
            layout=processes.layout,
            reduce=processes.reduce,
        )
    finally:
        processes.close()
    return replace(
        figures,
        unreadable=(*found[0].unreadable, *found[1].unreadable),
        preprocessing=info.preprocessing,
        model=info.name,
    )


def knn_accuracies(
    train_features: Array,
    train_labels: Array,
    val_features: Array,
    val_labels: Array,
    *,
    ks: Sequence[int] | None = None,
    temperature: float = TEMPERATURE,
    layout: Layout = ALONE,
    reduce: Reduce = lambda tensor: tensor,
) -> KNNReport:
    """Classifies features by their nearest neighbours, and counts the correct results.

    Of classes with equal votes, the one with the lower index comes first. As in DINO's evaluation, classes without
    votes come after those with votes; with five classes or fewer, top-5 is therefore 100%. If equally similar images
    compete for the last of the k places, torch decides.

    Args:
        train_features: (N, D), a model's features or pixels; they are normalised here.
        train_labels: (N,) class indices from 0.
        val_features: (M, D).
        val_labels: (M,).
        ks: see `evaluate_knn`.
        temperature: temperature of the votes.
        layout: which of several processes this is; each classifies its share.
        reduce: sums over the processes.

    Raises:
        XCiTError: if shapes do not fit, a label is not a class index, a feature is not finite, or k exceeds N.
    """
    train, labels = _checked(train_features, train_labels, "training")
    val, targets = (tensor.to(train.device) for tensor in _checked(val_features, val_labels, "validation"))
    if train.shape[1] != val.shape[1]:
        raise XCiTError(f"training features have {train.shape[1]} numbers, validation features {val.shape[1]}")
    ks = _check(ks, temperature, len(train))
    num_classes = int(torch.cat([labels, targets]).max()) + 1
    num_right = torch.zeros(2, len(ks), dtype=torch.int64, device=train.device)
    chunk = max(1, _MAX_SIMILARITIES // max(len(train), num_classes))
    for rows in torch.arange(layout.rank, len(val), layout.world_size, device=train.device).split(chunk):
        similarities, neighbours = (val[rows] @ train.T).topk(max(ks), dim=1)
        for index, k in enumerate(ks):
            weights = ((similarities[:, :k] - similarities[:, :1]) / temperature).exp()
            place = place_of_class(weights, labels[neighbours[:, :k]], targets[rows], num_classes)
            num_right[:, index] += torch.stack([(place == 0).sum(), (place < min(5, k)).sum()])
    num_right = reduce(num_right)
    return KNNReport(
        accuracies=tuple(
            KNNAccuracy(
                k=k, num_right1=right1, num_right5=right5, top1=100 * right1 / len(val), top5=100 * right5 / len(val)
            )
            for k, right1, right5 in zip(ks, *num_right.tolist(), strict=True)
        ),
        temperature=temperature,
        num_train=len(train),
        num_val=len(val),
    )


def place_of_class(weights: Tensor, labels: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Returns the rank (B,) of the true class after the neighbours have voted; 0 is the first.

    Args:
        weights: (B, k), weights of the neighbours' votes.
        labels: (B, k), class indices of the neighbours.
        targets: (B,), true class indices.
        num_classes: larger than any class index.
    """
    # The sums are in float64, so that equal sums stay equal in whatever order a GPU adds.
    votes = torch.zeros(len(targets), num_classes, dtype=torch.float64, device=weights.device)
    votes.scatter_add_(1, labels, weights.double())
    own, target = votes.gather(1, targets[:, None]), targets[:, None]
    classes = torch.arange(num_classes, device=weights.device)
    return ((votes > own) | ((votes == own) & (classes < target))).sum(dim=1)


def _check(ks: Sequence[int] | None, temperature: float, num_train: int) -> Sequence[int]:
    """Returns the numbers of neighbours, after a check that none exceeds the number of training images."""
    if not 0 < temperature < float("inf"):
        raise XCiTError(f"temperature is {temperature}, must be above 0")
    if ks is None:
        ks = [k for k in KS if k <= num_train]
        if not ks:
            raise XCiTError(f"there are only {num_train} training images: give a k of at most that many")
    if not ks or min(ks) < 1:
        raise XCiTError(f"k is {', '.join(map(str, ks)) or 'missing'}, must be at least 1")
    if max(ks) > num_train:
        raise XCiTError(f"k is {max(ks)}, but there are only {num_train} training images to be neighbours")
    return ks


def _checked(features: Array, labels: Array, what: str) -> tuple[Tensor, Tensor]:
    """Returns normalised features, and labels on the same device."""
    rows = torch.as_tensor(features).float()
    targets = torch.as_tensor(labels).to(rows.device, torch.int64)
    if rows.ndim != 2 or targets.shape != rows.shape[:1] or not len(rows):
        raise XCiTError(
            f"{what} features must be (images, numbers) and labels (images,), not {tuple(rows.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if not torch.isfinite(rows).all():
        raise XCiTError(f"the {what} features hold NaN or infinity")
    if targets.min() < 0:
        raise XCiTError(f"{what} label {int(targets.min())} is not a class index: they count from 0")
    return F.normalize(rows, dim=1), targets
