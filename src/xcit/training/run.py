"""Trains a recipe, as the command `xcit train` does."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xcit.config import override, read_yaml, save_yaml
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.inference.reading import default_device
from xcit.machine import find_device
from xcit.training.display import run_display
from xcit.training.engine.checkpoint import LAST
from xcit.training.engine.distribution import Processes
from xcit.training.engine.log import check_trackers, draw_run
from xcit.training.engine.loop import train_task
from xcit.training.engine.progress import Progress
from xcit.training.engine.task import Layout
from xcit.training.recipes import RECIPES, get_recipe
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.table import TASKS, AnyTask, TrainingConfig

CONFIG = "config.yaml"
"""Name of the file in a run's folder with the complete config, including the values that come from the data."""

_FAR = 2.0
"""The user gets a warning if the global batch sizes of the run and the recipe differ by this factor or more."""


def train(
    config: str | TrainingConfig,
    directory: str | os.PathLike[str],
    *,
    fields: Mapping[str, Any] | None = None,
    resume: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    report: Callable[[Progress], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Trains a recipe, in one process or in several processes that torchrun started.

    `xcit.train("xcit-nano-12-p16_transfer", "runs/mine", fields={"data": "photos", "schedule.epochs": 20})` does the
    same as `xcit train xcit-nano-12-p16_transfer --out runs/mine --data photos --schedule.epochs 20`.

    The run writes config.yaml, log.jsonl, curves.png, checkpoints and weights to `directory` (see `train_task`).

    Args:
        config: the name of a recipe, the path of a run's YAML file, or a config.
        directory: the run's folder; it is created if it does not exist.
        fields: new values for fields of the config, by dotted name or by section (see `xcit.config.override`).
            `xcit config RECIPE` prints all names.
        resume: the checkpoint to resume from: the path of a checkpoint, or the folder of a run, to use its last
            checkpoint. "auto" means the last checkpoint in `directory`, if there is one. None starts a new run.
        device: the device to compute on; None means a GPU if there is one, otherwise the CPU.
        report: called in the main process, every few steps and after each evaluation.
        announce: called in the main process with each line for the user. If neither `report` nor `announce` is given,
            the run prints one line per epoch on standard output, and shows a panel if standard error is a terminal.

    Returns:
        The figures of the last evaluation.

    Raises:
        XCiTError: if the recipe, the folder, the checkpoint or the data are wrong, if the loss is not finite, or if a
            file can't be written. Recipe, folder and checkpoint are checked before anything is loaded.
        Stopped: after SIGTERM or SIGINT, when the state of the run is saved.
    """
    need_packages("training", "timm")
    if isinstance(config, str):
        config = get_recipe(config)
    if fields:
        config = override(config, fields)
    directory = Path(directory)
    checkpoint = check_run(config, directory, resume)
    place = find_device(device) if device is not None else default_device()
    if report is None and announce is None:
        heading = f"{config.name}: {config.schedule.epochs} epochs of {config.data} on {place}; files in {directory}"
        with run_display(heading) as display:
            return _train(config, directory, checkpoint, place, display.report, display.announce)
    return _train(config, directory, checkpoint, place, report or _unseen, announce or _unseen)


def _unseen(_: object) -> None:
    pass


def _train(
    config: TrainingConfig,
    directory: Path,
    checkpoint: Path | None,
    place: torch.device,
    report: Callable[[Progress], None],
    announce: Callable[[str], None],
) -> dict[str, float]:
    processes = Processes(config.run, place)
    task, resolved = build_task(config, processes.layout, is_new=checkpoint is None)
    directory.mkdir(parents=True, exist_ok=True)

    def begin() -> None:
        save_yaml(resolved, directory / CONFIG)
        problems = [f"warning: {line}" for line in getattr(task, "problems", ())]
        notes = getattr(task, "notes", ())
        for line in [*notes, *describe_batch(config, processes.layout), *describe_watching(resolved), *problems]:
            announce(line)

    try:
        return train_task(
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
        processes.close()


def build_task(config: TrainingConfig, layout: Layout, *, is_new: bool = True) -> tuple[AnyTask, TrainingConfig]:
    """Returns the task of a config, and the config with the values that come from the data.

    Args:
        config: the config of the run.
        layout: the division of a global batch among the processes.
        is_new: whether the run is new. A resumed run loads no initial weights, because its checkpoint has all weights.

    Raises:
        XCiTError: if the data are wrong, or if weights can't be loaded or do not fit.
    """
    kind = TASKS[config.task]
    field = kind.first_weights
    if not field:
        return kind.task(config, layout), config
    if is_new:
        kind.check(config)
    started_from = getattr(config, field)
    task = kind.task(config if is_new else replace(config, **{field: kind.resumed(started_from)}), layout)
    # The config gets the original value of the field back, because an exported adapter stores the name of its base
    # model.
    task.config = replace(task.config, **{field: started_from})
    return task, task.config


def check_run(config: TrainingConfig, directory: Path, resume: str | os.PathLike[str] | None) -> Path | None:
    """Checks a run before anything is loaded, and returns the checkpoint to resume from, or None for a new run.

    Raises:
        XCiTError: if no data are given, a tracker is not installed, the folder contains another run, or the checkpoint
            does not exist or belongs to another model.
    """
    if not config.data:
        images = TASKS[config.task].images
        raise XCiTError(f"{config.name} has no data of its own: set data to a folder of {images}")
    check_trackers(config.run)
    last = directory / LAST
    if resume == "auto":
        resume = last if last.exists() else None
    if resume is None:
        if last.exists():
            raise XCiTError(f"{directory} already contains a run: resume it, or choose another folder")
        return None
    checkpoint = Path(resume) / LAST if Path(resume).is_dir() else Path(resume)
    if not checkpoint.exists():
        raise XCiTError(f"{checkpoint}: no such checkpoint to resume from")
    if last.exists() and checkpoint.parent.resolve() != directory.resolve():
        raise XCiTError(
            f"{directory} already contains another run, to which {checkpoint} does not belong: choose another folder "
            "for the new run"
        )
    if (checkpoint.parent / CONFIG).exists():
        own = get_recipe(str(checkpoint.parent / CONFIG))
        _check_distillation(own, checkpoint)
        # In a recipe, the number of classes may be 0. The config in a run's folder has the number from the data.
        model = replace(config.model, num_classes=config.model.num_classes or own.model.num_classes)
        if (own.task, own.model) != (config.task, model):
            raise XCiTError(
                f"{checkpoint} belongs to another model: resume with the config {checkpoint.parent / CONFIG}"
            )
        if own.optimizer.undecayed != config.optimizer.undecayed:
            raise XCiTError(
                f"{checkpoint} was trained with optimizer.undecayed {own.optimizer.undecayed}, not "
                f"{config.optimizer.undecayed}: resume with the config {checkpoint.parent / CONFIG}"
            )
    return checkpoint


def _check_distillation(config: TrainingConfig, checkpoint: Path) -> None:
    """Refuses to resume a run with soft distillation that an older version started, because the loss has changed.

    The older version did not divide the loss by the number of classes.

    Raises:
        XCiTError: if an older version started the run.
    """
    if not isinstance(config, ClassificationConfig) or not config.distillation.teacher:
        return
    # Only versions after the change of the loss write the field `ema_warmup`.
    is_old = "ema_warmup" not in read_yaml(checkpoint.parent / CONFIG).get("run", {})
    if config.distillation.kind == "soft" and is_old:
        raise XCiTError(
            f"{checkpoint} belongs to a run of an older version, in which the loss of soft distillation was "
            f"{config.model.num_classes} times as large as now (it was not divided by the number of classes): start a "
            "new run, with values of temperature and alpha for the new scale"
        )


def describe_batch(config: TrainingConfig, layout: Layout) -> list[str]:
    """Returns a line about the learning rate and the division of the global batch into parts.

    If the batch size is very different from the recipe's batch size, a second line with a warning is returned too.
    """
    lines = [
        f"global batch {layout.batch_size} = {layout.world_size} process{'es' * (layout.world_size > 1)} x "
        f"{layout.accumulation} part{'s' * (layout.accumulation > 1)} x {layout.part_size} images, "
        f"learning rate {config.optimizer.lr:g}"
    ]
    if config.name in RECIPES:
        recipe = RECIPES[config.name]()
        ratio = layout.batch_size / recipe.run.batch_size
        if not 1 / _FAR < ratio < _FAR:
            lines.append(
                f"warning: the recipe has learning rate {recipe.optimizer.lr:g} for a global batch of "
                f"{recipe.run.batch_size} images, but this run has a global batch of {layout.batch_size} images: the "
                "learning rate is not changed automatically; if it were scaled with the batch size, it would be "
                f"{recipe.optimizer.lr * ratio:.3g} (set it with optimizer.lr)"
            )
    return lines


def describe_watching(config: TrainingConfig) -> list[str]:
    """Returns a warning if a run is evaluated on its training images, because its results are then too good."""
    reason = TASKS[config.task].flattered(config)
    return [f"warning: {reason}"] if reason else []
