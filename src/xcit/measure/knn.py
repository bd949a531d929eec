"""Nearest neighbours: how well a model's features tell the classes without any training. What `xcit knn` does.

DINO's protocol (arXiv 2104.14294): the features of both splits are L2-normalised; each validation image gets the votes
of the k training images most similar to it, each vote weighing exp(similarity / temperature).
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
from xcit.training.engine.task import Layout, Reduce
from xcit.training.tasks.labelled_features import check_pooled, extract, feature_cache, open_train_and_val, share_of

KS = (10, 20, 100, 200)
"""The published numbers of neighbours."""

TEMPERATURE = 0.07

_MAX_SIMILARITIES = 2**25
"""Numbers of one chunk's matrix of similarities: an eighth of a gigabyte."""

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

Array = Tensor | np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class KNNAccuracy:
    """What k neighbours tell: counts of right images, and the same in percent.

    An image counts for top-5 if its class is among the first five, or the first k where k is less.
    """

    k: int
    num_right1: int
    num_right5: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class KNNReport:
    """Figures of a k-NN classification.

    Attributes:
        accuracies: one a k, in the order that was asked for.
        temperature: of the votes.
        num_train: images among which neighbours were looked for.
        num_val: images that were classified.
        unreadable: one line for each image of either split that could not be read, and so did not count.
        preprocessing: of the images, where there were images.
        model: whose features they are, where there was one.
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
        """The accuracy with the highest top-1, of equal ones the first."""
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

    The feature is what a classifier reads (see `pooled_feature`), of images prepared as the model's `info` says.

    Args:
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`.
        data: a folder with train/<class>/<image> and val/<class>/<image>, or a known name (see
            `open_labelled_images`); or the two splits themselves.
        ks: numbers of neighbours; none takes those of 10, 20, 100 and 200 that are no more than the training images.
        temperature: of the votes.
        holdout: classify images that are taken off the training images, a number, or below 1 a share: the same that
            training with this `holdout` leaves out.
        class_map: a file that says which classes are meant by the names in the data (see `read_class_map`).
        cache: whether features are kept in `feature_cache()`, and taken from there.
        batch_size: images a forward pass, in each process.
        num_workers: processes that read images, for each process.
        device: where to compute; none is a GPU if there is one, else the CPU.
        dtype: float32, or bfloat16 or float16 for autocast; neighbours are looked for in float32.
        started: called once with the number of images of this process.
        report: called with the number of images of each batch of this process.
        announce: called with lines for people, in the main process. Without these three they are shown: a progress bar
            where standard error is a terminal, and the lines on it.

    Raises:
        XCiTError: if the data or the model can't be had, it is not known how to prepare images for it, no image can be
            read, or k is more than the training images.
    """
    if dtype not in _DTYPES:
        raise XCiTError(f"dtype is {dtype}, must be torch.float32, torch.bfloat16 or torch.float16")
    found_lines: list[str] = []  # told when nothing that was asked for is wrong
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
            listener.started(len(share_of(train, processes)) + len(share_of(val, processes)))
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
    layout: Layout | None = None,
    reduce: Reduce = lambda tensor: tensor,
) -> KNNReport:
    """Classifies features by their nearest neighbours, and counts.

    Of classes with equal votes the one with the lower index comes first. As in DINO's evaluation, classes without a
    vote follow those with one, so that of five classes or fewer every image's is among the first five. Which of several
    equally similar images are still among the k is torch's choice.

    Args:
        train_features: (N, D) of any kind, they are normalised here: a model's features, or pixels.
        train_labels: (N,) class indices from 0.
        val_features: (M, D).
        val_labels: (M,).
        ks: as in `evaluate_knn`.
        temperature: of the votes.
        layout: which of several processes this is; each classifies its share.
        reduce: sums over the processes.

    Raises:
        XCiTError: if shapes do not fit, a label is no class index, a feature is not finite, or k is more than N.
    """
    train, labels = _checked(train_features, train_labels, "training")
    val, targets = (tensor.to(train.device) for tensor in _checked(val_features, val_labels, "validation"))
    if train.shape[1] != val.shape[1]:
        raise XCiTError(f"training features have {train.shape[1]} numbers, validation features {val.shape[1]}")
    ks = _check(ks, temperature, len(train))
    num_classes = int(torch.cat([labels, targets]).max()) + 1
    rank, world_size = (layout.rank, layout.world_size) if layout is not None else (0, 1)
    num_right = torch.zeros(2, len(ks), dtype=torch.int64, device=train.device)
    chunk = max(1, _MAX_SIMILARITIES // max(len(train), num_classes))
    for rows in torch.arange(rank, len(val), world_size, device=train.device).split(chunk):
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
    """Where the true class stands among all classes when neighbours have voted: (B,), 0 for the first.

    Args:
        weights: (B, k) of the neighbours' votes.
        labels: (B, k) class indices of the neighbours.
        targets: (B,) true class indices.
        num_classes: more than any of them.
    """
    # In double precision, for equal sums must not differ by the order in which a GPU adds.
    votes = torch.zeros(len(targets), num_classes, dtype=torch.float64, device=weights.device)
    votes.scatter_add_(1, labels, weights.double())
    own, target = votes.gather(1, targets[:, None]), targets[:, None]
    classes = torch.arange(num_classes, device=weights.device)
    return ((votes > own) | ((votes == own) & (classes < target))).sum(dim=1)


def _check(ks: Sequence[int] | None, temperature: float, num_train: int) -> Sequence[int]:
    """The numbers of neighbours, of so many training images at most."""
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
    """Normalised features and labels on one device."""
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
        raise XCiTError(f"{what} label {int(targets.min())} is no class index: they count from 0")
    return F.normalize(rows, dim=1), targets
