"""Measures a model's features by k-nearest-neighbour classification, without any training, for `xcit knn`.

The protocol is DINO's (arXiv 2104.14294). The features of both splits are L2-normalised. For each validation image, the
k most similar training images vote for their classes. The weight of a vote is exp(similarity / temperature).
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
"""The numbers of neighbours in the evaluation code that DINO's authors published."""

TEMPERATURE = 0.07

_MAX_SIMILARITIES = 2**25
"""Largest number of similarities that are in memory at a time. They take 128 MiB in float32."""

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

Array = Tensor | np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class KNNAccuracy:
    """Results with k neighbours.

    Attributes:
        k: number of neighbours.
        num_right1: number of images for which the true class has the largest sum of votes.
        num_right5: number of images for which the true class is among the five classes with the largest sums of votes.
            If k is below 5, the true class must be among the first k classes.
        top1: `num_right1` in percent of all images.
        top5: `num_right5` in percent of all images.
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
        accuracies: results, one per k, in the order of the requested `ks`.
        temperature: temperature of the votes.
        num_train: number of training images, among which the neighbours were searched.
        num_val: number of validation images, which were classified.
        unreadable: one line for each image that could not be read; such images of both splits were left out.
        preprocessing: the preprocessing; None if the features were given.
        model: name of the model; "" if the features were given.
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
        """The result with the highest top-1. If several results have this top-1, the first one is returned."""
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
    """Measures a model's features on a data set by k-nearest-neighbour classification.

    The feature of an image is the input of the classifier's head (see `pooled_feature`). Images are
    preprocessed as the model's `info` states. Under torchrun, all processes share the work.

    Args:
        model: a model from `get_model`, a weights file, or a published name. The weights of a published name are
            downloaded if they are not yet on this machine.
        data: a folder with train/<class>/<image> and val/<class>/<image>, or the name of a data set (see
            `open_labelled_images`); or a tuple of the training and the validation images.
        ks: numbers of neighbours; None means 10, 20, 100 and 200, except numbers above the number of training images.
        temperature: temperature of the votes.
        holdout: number of training images that are classified instead of validation images; a value below 1 is a
            fraction. A training run with the same `holdout` does not train on these images. 0 means none.
        class_map: a file that maps class names in the data to other class names (see `read_class_map`).
        cache: whether features are read from and written to the folder `feature_cache()`.
        batch_size: images per forward pass, in each process.
        num_workers: number of processes that read images, for each process.
        device: where to compute; None means a GPU if there is one, else the CPU.
        dtype: float32, or bfloat16 or float16 for autocast; the search for neighbours is always in float32.
        started: called once with the number of images that this process reads.
        report: called with the number of images of each batch of this process.
        announce: called with lines for the user, in the main process. If `started`, `report` and `announce` are all
            None, the lines are printed to standard error. If standard error is a terminal, a progress bar is shown.

    Raises:
        XCiTError: if the data or the model can't be loaded, the model's preprocessing is unknown, no image can be read,
            or a k exceeds the number of training images.
    """
    if dtype not in _DTYPES:
        raise XCiTError(f"dtype is {dtype}, but must be torch.float32, torch.bfloat16 or torch.float16")
    found_lines: list[str] = []  # these lines are announced after all arguments have been checked
    if isinstance(data, str):
        train, val = open_train_and_val(data, holdout, found_lines.append, class_map=os.fspath(class_map))
    elif class_map:
        raise XCiTError("a class map needs data that are given as a folder or a name, not as two splits")
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

    Classes are ranked by the sum of their votes. Among classes with equal sums, the lower class index comes first. As
    in DINO's evaluation, classes without votes come last. So top-5 is 100% if there are at most five classes and k is
    at least 5. If several images are equally similar, torch decides which of them are among the k neighbours.

    Args:
        train_features: (N, D) features of the training images; this function normalises them.
        train_labels: (N,) class indices from 0.
        val_features: (M, D) features of the validation images; this function normalises them.
        val_labels: (M,) class indices from 0.
        ks: numbers of neighbours; None means the default of `evaluate_knn`.
        temperature: temperature of the votes.
        layout: rank of this process and number of processes; each process classifies its share.
        reduce: returns the sum of a tensor over all processes.

    Raises:
        XCiTError: if shapes do not fit, a label is not a class index, a feature is not finite, or a k exceeds N.
    """
    train, labels = _checked(train_features, train_labels, "training")
    val, targets = (tensor.to(train.device) for tensor in _checked(val_features, val_labels, "validation"))
    if train.shape[1] != val.shape[1]:
        raise XCiTError(f"training features have {train.shape[1]} numbers, but validation features have {val.shape[1]}")
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
    """Returns the rank (B,) of the true class by the sum of its votes; 0 is the best rank.

    Args:
        weights: (B, k), weights of the neighbours' votes.
        labels: (B, k), class indices of the neighbours.
        targets: (B,), true class indices.
        num_classes: number of classes.
    """
    # The sums are in float64, so that two equal sums stay equal even if a GPU adds their terms in different orders.
    votes = torch.zeros(len(targets), num_classes, dtype=torch.float64, device=weights.device)
    votes.scatter_add_(1, labels, weights.double())
    own, target = votes.gather(1, targets[:, None]), targets[:, None]
    classes = torch.arange(num_classes, device=weights.device)
    return ((votes > own) | ((votes == own) & (classes < target))).sum(dim=1)


def _check(ks: Sequence[int] | None, temperature: float, num_train: int) -> Sequence[int]:
    """Checks the numbers of neighbours and the temperature, and returns `ks`, or its default if `ks` is None."""
    if not 0 < temperature < float("inf"):
        raise XCiTError(f"temperature is {temperature}, but must be above 0")
    if ks is None:
        ks = [k for k in KS if k <= num_train]
        if not ks:
            raise XCiTError(f"there are only {num_train} training images: give a k of at most {num_train}")
    if not ks or min(ks) < 1:
        raise XCiTError(f"k is {', '.join(map(str, ks)) or 'missing'}, but must be at least 1")
    if max(ks) > num_train:
        raise XCiTError(f"k is {max(ks)}, but there are only {num_train} training images")
    return ks


def _checked(features: Array, labels: Array, what: str) -> tuple[Tensor, Tensor]:
    """Returns L2-normalised features in float32, and labels on the same device; checks their shapes and values."""
    rows = torch.as_tensor(features).float()
    targets = torch.as_tensor(labels).to(rows.device, torch.int64)
    if rows.ndim != 2 or targets.shape != rows.shape[:1] or not len(rows):
        raise XCiTError(
            f"{what} features must have the shape (images, numbers), and labels the shape (images,), not "
            f"{tuple(rows.shape)} and {tuple(targets.shape)}"
        )
    if not torch.isfinite(rows).all():
        raise XCiTError(f"the {what} features contain NaN or infinity")
    if targets.min() < 0:
        raise XCiTError(f"{what} label {int(targets.min())} is not a class index: class indices count from 0")
    return F.normalize(rows, dim=1), targets
