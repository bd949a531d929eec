"""Measures a frozen model's features by training a linear classifier on them, for `xcit linear`."""

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
from xcit.progress import progress_bar
from xcit.training.display import run_display
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
"""Name of the config in a run's folder."""

LRS = (0.001,)
"""The published learning rate, for a global batch size of 256."""

BATCH_SIZE = 1024
"""The published global batch size: 128 images on each of eight GPUs."""

_DEVICE_BATCH = 128
"""Images per forward pass of each process."""

_KEPT = ("backbone", "data", "class_map", "augmented", "lrs", "epochs", "class_weights")
"""These fields of the config, and the batch size, must not change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """Results of a linear probe.

    Attributes:
        accuracies: results after the last epoch, one per learning rate, in the order of the requested `lrs`.
        num_val: number of validation images that were classified.
        unreadable: one line for each image that could not be read; such images were left out.
        model: name of the model.
    """

    accuracies: tuple[LinearAccuracy, ...]
    num_val: int
    unreadable: tuple[str, ...]
    model: str

    @property
    def best(self) -> LinearAccuracy:
        """The result with the highest top-1. If several results have this top-1, the first one is returned.

        The same validation images are used to select and to measure this result, so its top-1 is slightly too high.
        """
        return max(self.accuracies, key=lambda accuracy: accuracy.num_right1)


@dataclass(frozen=True, kw_only=True)
class _Listener:
    """The callbacks of a linear probe; `train_linear` describes them as its arguments."""

    extracting: Callable[[int], AbstractContextManager[Callable[[int], None]]]
    report: Callable[[Progress], None]
    announce: Callable[[str], None]


@contextmanager
def _listening(
    heading: str,
    extracting: Callable[[int], AbstractContextManager[Callable[[int], None]]] | None,
    report: Callable[[Progress], None] | None,
    announce: Callable[[str], None] | None,
) -> Iterator[_Listener]:
    """Yields the given callbacks, or callbacks that display the run in the terminal if all three callbacks are None."""
    if extracting is None and report is None and announce is None:
        with run_display(heading) as display:
            yield _Listener(extracting=_shown, report=display.report, announce=display.announce)
        return
    yield _Listener(extracting=extracting or _unseen, report=report or _ignored, announce=announce or _ignored)


@contextmanager
def _shown(num_images: int) -> Iterator[Callable[[int], None]]:
    with progress_bar("features", num_images) as bar:
        yield bar.advance


@contextmanager
def _unseen(_: int) -> Iterator[Callable[[int], None]]:
    yield _ignored


def _ignored(_: object) -> None:
    pass


def train_linear(
    model: str | os.PathLike[str] | XCiT,
    data: str,
    directory: str | os.PathLike[str],
    *,
    lrs: Sequence[float] = LRS,
    epochs: int = 100,
    augmented: bool = True,
    class_weights: Sequence[float] = (),
    class_map: str | os.PathLike[str] = "",
    batch_size: int = BATCH_SIZE,
    cache: bool = True,
    resume: bool = False,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    extracting: Callable[[int], AbstractContextManager[Callable[[int], None]]] | None = None,
    report: Callable[[Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> LinearReport:
    """Trains a linear classifier on a frozen model's features, and measures it on the validation images.

    The protocol is that of DINO's authors: SGD with momentum 0.9 and without weight decay, a cosine schedule from the
    learning rate to 0, and random resized crops and flips in training. In evaluation, images are preprocessed as
    the model's `info` states. The feature of an image is the input of a classifier's head. Under torchrun, all
    processes share the work.

    The files of the run are written to `directory` (see `train_task`). The file `model.safetensors` contains the model
    with the trained classifier as its head.

    Args:
        model: a model from `get_model`, a weights file, or a published name. The weights of a published name are
            downloaded if they are not yet on this machine.
        data: a folder with train/<class>/<image> and val/<class>/<image>, or the name of a data set (see
            `open_labelled_images`).
        directory: the run's folder; it is created if it does not exist.
        lrs: learning rates for a global batch size of 256; they are scaled in proportion to `batch_size`. One
            classifier is trained per learning rate, all on the same features. The classifier with the highest top-1 on
            the validation images is saved, so this top-1 is slightly too high.
        epochs: number of epochs.
        augmented: True for the published protocol. False computes the features of centre crops once, caches these
            features as `evaluate_knn` does, and trains on them. Training then takes minutes instead of hours, but the
            results can't be compared with published results.
        class_weights: weight of each class in the loss, one number per class; if empty, all weights are equal, as
            published.
        class_map: a file that maps class names in the data to other class names (see `read_class_map`).
        batch_size: the global batch size, over all processes.
        cache: whether features of centre crops are read from and written to the folder `feature_cache()`.
        resume: whether to resume from the last checkpoint in `directory`, if there is one.
        num_workers: number of processes that read images, for each process.
        device: where to compute; None means a GPU if there is one, else the CPU.
        extracting: called with the number of images for which this process computes features before training. It
            returns a context manager that yields a callback for the number of images of each batch.
        report: called with a `Progress` in the main process, every few steps and after each evaluation.
        announce: called with lines for the user, in the main process. If `extracting`, `report` and `announce` are all
            None, the lines are printed to standard output, with progress bars if standard error is a terminal.

    Raises:
        XCiTError: if the data or the model can't be loaded, the model's preprocessing is unknown, the folder contains
            another run, or `train_task` raises this error.
        Stopped: after SIGTERM or SIGINT, when everything has been saved.
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
        class_map=os.fspath(class_map),
        augmented=augmented,
        lrs=tuple(lrs),
        epochs=epochs,
        class_weights=tuple(class_weights),
        run=run,
    )
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else getattr(model.info, "name", "a model")
    crops = "random crops" if augmented else "centre crops"
    heading = f"linear probe of {name}: {epochs} epochs of {crops}; files in {directory}"
    with _listening(heading, extracting, report, announce) as listener:
        return _measured(model, config, directory, cache=cache, resume=resume, device=device, listener=listener)


def _measured(
    model: str | os.PathLike[str] | XCiT,
    config: LinearConfig,
    directory: Path,
    *,
    cache: bool,
    resume: bool,
    device: str | torch.device | None,
    listener: _Listener,
) -> LinearReport:
    data, run, augmented = config.data, config.run, config.augmented
    found_lines: list[str] = []  # these lines are announced after all arguments have been checked
    train, val = open_train_and_val(data, announce=found_lines.append, class_map=config.class_map)
    check_class_weights(config.class_weights, len(train.class_ids))
    if len(train) < run.batch_size:
        raise XCiTError(
            f"{data} has {len(train)} training images, fewer than a batch of {run.batch_size}: choose a smaller batch"
        )
    processes = Processes(run, find_device(device) if device is not None else default_device())
    try:
        backbone, info = find_model(model)
        if isinstance(backbone, FusedXCiT):
            raise XCiTError("the classifier of a fused model can't be saved: pass the model before fusion")
        network, _, _ = prepare_model(backbone, processes.device, torch.float32)
        config = replace(config, name=info.name, backbone=backbone_digest(network))
        checkpoint = check_run(config, directory, resume=resume)
        check_pooled(network)
        for line in found_lines if processes.is_main else ():
            listener.announce(line)
        splits = (val,) if augmented else (val, train)
        # `run.batch_size` is for training the classifier; `reading.batch_size` is for computing features.
        reading = replace(run, batch_size=_DEVICE_BATCH * processes.layout.world_size)
        with listener.extracting(sum(len(processes.layout.share(len(images))) for images in splits)) as report_images:
            features = [
                extract(
                    network,
                    images,
                    info.preprocessing,
                    processes,
                    run=reading,
                    cache=feature_cache() if cache else None,
                    report=report_images,
                    announce=listener.announce,
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
        _train(task, processes, directory, checkpoint, report=listener.report, announce=listener.announce)
        unreadable = processes.gather(list(task.unreadable))
    finally:
        processes.close()
    return LinearReport(
        accuracies=task.accuracies,
        num_val=len(features[0].labels),
        unreadable=(*dict.fromkeys(unreadable), *features[0].unreadable),
        model=info.name,
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
    """Returns the checkpoint to resume from; None if the folder contains no run.

    Raises:
        XCiTError: if the folder contains a run and `resume` is False, or if the run has another config.
    """
    last = directory / LAST
    if not last.exists():
        return None
    if not resume:
        raise XCiTError(f"{directory} already contains a run: resume it, or choose another folder")
    own = load_yaml(LinearConfig, directory / CONFIG)
    for name, theirs, ours in (
        *((name, getattr(own, name), getattr(config, name)) for name in _KEPT),
        ("batch_size", own.run.batch_size, config.run.batch_size),
    ):
        if theirs != ours:
            raise XCiTError(
                f"{directory} contains another run: its {name} is {theirs}, not {ours}; choose another folder"
            )
    return last


def _classifier_info(backbone: ModelInfo, class_ids: tuple[str, ...]) -> ModelInfo:
    """Returns the info of the trained classifier, with the classes of the data.

    If these are the classes of ImageNet, they get their English names.
    """
    is_imagenet = class_ids == imagenet_class_ids()
    return ModelInfo(
        name=f"{backbone.name}-linear",
        preprocessing=backbone.preprocessing,
        class_names=imagenet_class_names() if is_imagenet else class_ids,
        class_ids=class_ids if is_imagenet else (),
    )
