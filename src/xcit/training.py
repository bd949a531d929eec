"""A recipe trained on its data: what `xcit train` does."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from xcit.engine.config import load_yaml, save_yaml
from xcit.engine.train import Progress
from xcit.engine.train import train as train_task
from xcit.errors import XCiTError
from xcit.inference import default_device
from xcit.recipes import get_recipe
from xcit.tasks.classification import ClassificationConfig, ClassificationTask


def train(
    config: str | ClassificationConfig,
    directory: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | torch.device | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, float]:
    """Trains by a recipe; `directory` gets config.yaml, log.jsonl, last.pt after every epoch, and model.safetensors.

    Args:
        config: a recipe's name, a run's YAML file, or a config.
        directory: the run's folder, made if it is not there.
        resume: go on from the checkpoint in the folder.
        device: where to compute; none is a GPU if there is one, else the CPU.
        report: called after every step, and with figures after an evaluation.

    Returns:
        The figures of the last evaluation.

    Raises:
        XCiTError: before anything is loaded if recipe or folder are wrong, then on wrong data, on a loss that is not
            finite, or if a file can't be written.
    """
    if isinstance(config, str):
        config = get_recipe(config)
    directory = Path(directory)
    if (directory / "last.pt").exists() and not resume:
        raise XCiTError(f"{directory} holds a run already: resume it, or choose another folder")
    if resume and not (directory / "last.pt").exists():
        raise XCiTError(f"{directory} holds no run to resume")
    if resume:
        own = load_yaml(ClassificationConfig, directory / "config.yaml")
        if own.model != config.model or bool(own.run.ema_decay) != bool(config.run.ema_decay):
            raise XCiTError(
                f"{directory} holds a run of another model, or with other averaging: resume by {directory}/config.yaml"
            )
    task = ClassificationTask(config)
    directory.mkdir(parents=True, exist_ok=True)
    save_yaml(config, directory / "config.yaml")
    return train_task(
        task,
        run=config.run,
        optimizer_config=config.optimizer,
        schedule_config=config.schedule,
        directory=directory,
        device=torch.device(device) if device is not None else default_device(),
        resume=resume,
        report=report,
    )
