"""A linear classifier trained on the features of a frozen model, to measure them: what `xcit linear` does."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from xcit.config import load_yaml, save_yaml
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.inference.classify import find_model, prepare_model
from xcit.inference.reading import default_device
from xcit.machine import find_device
from xcit.models import ModelInfo, XCiT
from xcit.models.xcit import FusedXCiT
from xcit.training.engine.checkpoint import LAST
from xcit.training.engine.config import RunConfig
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import draw_run
from xcit.training.engine.loop import train_task
from xcit.training.engine.progress import Progress
from xcit.training.tasks.base import check_class_weights
from xcit.training.tasks.labelled_features import (
    backbone_digest,
    check_pooled,
    extract,
    feature_cache,
    open_train_and_val,
)
from xcit.training.tasks.linear_probe import LR_BATCH, LinearAccuracy, LinearConfig, LinearTask
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names

CONFIG = "config.yaml"
"""The config's name in a run's folder."""

LRS = (0.001,)
"""The published learning rate, for a global batch of 256."""

BATCH_SIZE = 1024
"""The published global batch: 128 images on each of eight GPUs."""

_DEVICE_BATCH = 128
"""Images a forward pass, in each process."""

_KEPT = ("backbone", "data", "augmented", "lrs", "epochs", "class_weights")
"""Fields that a run which goes on must have as it began."""


@contextmanager
def _unseen(_: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """Figures of a linear probe.

    Attributes:
        accuracies: after the last epoch, one a learning rate, in the order that was asked for.
        num_val: validation images that were measured.
        unreadable: one line for each image that could not be read, and so did not count.
    """

    accuracies: tuple[LinearAccuracy, ...]
    num_val: int
    unreadable: tuple[str, ...]

    @property
    def best(self) -> LinearAccuracy:
        """The accuracy with the highest top-1, of equal ones the first; by the very images that it is of."""
        return max(self.accuracies, key=lambda accuracy: accuracy.num_right1)


def train_linear(
    model: str | os.PathLike[str] | XCiT,
    data: str,
    directory: str | os.PathLike[str],
    *,
    lrs: Sequence[float] = LRS,
    epochs: int = 100,
    augmented: bool = True,
    class_weights: Sequence[float] = (),
    batch_size: int = BATCH_SIZE,
    cache: bool = True,
    resume: bool = False,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    extracting: Callable[[int], AbstractContextManager[Callable[[int], None]]] = _unseen,
    report: Callable[[Progress], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> LinearReport:
    """Trains a linear classifier on a frozen model's features, in one process or in those of torchrun.

    As DINO's authors did: SGD with momentum 0.9 and no decay, a cosine from the learning rate to 0, random resized
    crops and flips in training; measured on images as the model's `info` says. The feature is what a classifier reads.

    `directory` gets what a training run gets (see `train_task`); its `model.safetensors` is the whole classifier.

    Args:
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`.
        data: a folder with train/<class>/<image> and val/<class>/<image>, or a known name.
        directory: the run's folder, made if it is not there.
        lrs: learning rates for a global batch of 256, taken in proportion to `batch_size`. With several a classifier
            learns with each on the same features; the best by the validation images is exported, so that its figure
            flatters a little.
        epochs: of training.
        augmented: as published; else the centre crops' features are computed once, kept as `evaluate_knn` keeps them,
            and trained on without augmentation: minutes instead of hours, and figures of another protocol.
        class_weights: what a class counts in the loss, a number a class; none counts all the same, as published.
        batch_size: the global batch, over all processes.
        cache: whether features of centre crops are kept in `feature_cache()`, and taken from there.
        resume: go on from the last checkpoint in `directory` if there is one.
        num_workers: processes that read images, for each process.
        device: where to compute; none is a GPU if there is one, else the CPU.
        extracting: called with the number of this process's images whose features are computed before the training;
            what its context gives is called with the number of images of each batch.
        report: called every few steps, and with figures after an evaluation, in the main process.
        announce: called with lines for people, in the main process.

    Raises:
        XCiTError: if the data or the model can't be had, it is not known how to prepare images for it, or the folder
            holds another run; and what `train_task` raises.
        Stopped: after SIGTERM or SIGINT, when all is saved.
    """
    need_packages("training a linear classifier", "timm")
    directory = Path(directory)
    run = RunConfig(
        batch_size=batch_size,
        max_device_batch=_DEVICE_BATCH if augmented else 0,
        num_workers=num_workers,
        max_unreadable=1.0,
    )
    config = LinearConfig(
        name="",
        backbone="",
        data=data,
        augmented=augmented,
        lrs=tuple(lrs),
        epochs=epochs,
        class_weights=tuple(class_weights),
        run=run,
    )
    found_lines: list[str] = []  # told when nothing that was asked for is wrong
    train, val = open_train_and_val(data, announce=found_lines.append)
    check_class_weights(config.class_weights, len(train.class_ids))
    if len(train) < batch_size:
        raise XCiTError(
            f"{data} has {len(train)} training images, fewer than a batch of {batch_size}: take a smaller one"
        )
    processes = Processes(run, find_device(device) if device is not None else default_device())
    try:
        backbone, info = find_model(model)
        if isinstance(backbone, FusedXCiT):
            raise XCiTError("the classifier of a fused model can't be saved: pass the model it was made from")
        network, _, _ = prepare_model(backbone, processes.device, torch.float32)
        config = replace(config, name=info.name, backbone=backbone_digest(network))
        checkpoint = check_run(config, directory, resume=resume)
        check_pooled(network)
        for line in found_lines if processes.is_main else ():
            announce(line)
        splits = (val,) if augmented else (val, train)
        # Images a forward pass of each process: the probe's own batch is of features.
        reading = replace(run, batch_size=_DEVICE_BATCH * processes.layout.world_size)
        with extracting(sum(len(processes.layout.share(len(images))) for images in splits)) as report_images:
            features = [
                extract(
                    network,
                    images,
                    info.preprocessing,
                    processes,
                    run=reading,
                    cache=feature_cache() if cache else None,
                    report=report_images,
                    announce=announce,
                )
                for images in splits
            ]
        task = LinearTask(
            config,
            backbone,
            network,
            _classifier_info(info, train.class_ids),
            train if augmented else features[1],
            features[0],
            processes.layout,
        )
        _train(task, processes, directory, checkpoint, report=report, announce=announce)
        unreadable = processes.gather(list(task.unreadable))
    finally:
        processes.close()
    return LinearReport(
        accuracies=task.accuracies,
        num_val=len(features[0].labels),
        unreadable=(*dict.fromkeys(unreadable), *features[0].unreadable),
    )


def _train(
    task: LinearTask,
    processes: Processes,
    directory: Path,
    checkpoint: Path | None,
    *,
    report: Callable[[Progress], None],
    announce: Callable[[str], None],
) -> None:
    config = task.config
    lrs = ", ".join(f"{lr * config.run.batch_size / LR_BATCH:g}" for lr in config.lrs)
    directory.mkdir(parents=True, exist_ok=True)

    def begin() -> None:
        save_yaml(config, directory / CONFIG)
        announce(
            f"{task.num_inputs} training images of {len(task.info.class_names)} classes, features of "
            f"{task.network.embed_dim} numbers; global batch {config.run.batch_size}, learning rate {lrs}"
        )

    try:
        train_task(
            task,
            processes,
            config,
            directory,
            resume_from=checkpoint,
            begin=begin,
            report=report,
            announce=announce,
        )
    finally:
        if processes.is_main:
            draw_run(directory, config.name, announce)


def check_run(config: LinearConfig, directory: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, none to begin.

    Raises:
        XCiTError: if the folder holds a run and it is not asked to go on, or another run than this.
    """
    last = directory / LAST
    if not last.exists():
        return None
    if not resume:
        raise XCiTError(f"{directory} holds a run already: resume it, or choose another folder")
    own = load_yaml(LinearConfig, directory / CONFIG)
    for name, theirs, ours in (
        *((name, getattr(own, name), getattr(config, name)) for name in _KEPT),
        ("batch_size", own.run.batch_size, config.run.batch_size),
    ):
        if theirs != ours:
            raise XCiTError(f"{directory} holds another run: its {name} is {theirs}, not {ours}; choose another folder")
    return last


def _classifier_info(backbone: ModelInfo, class_ids: tuple[str, ...]) -> ModelInfo:
    """Of the classifier: the data's classes, ImageNet's by their names in English."""
    is_imagenet = class_ids == imagenet_class_ids()
    return ModelInfo(
        name=f"{backbone.name}-linear",
        preprocessing=backbone.preprocessing,
        class_names=imagenet_class_names() if is_imagenet else class_ids,
        class_ids=class_ids if is_imagenet else (),
    )
