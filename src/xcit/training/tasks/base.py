"""Code that several tasks share: the loader of training data, the export, and checks of classes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xcit.data.loader import LoaderConfig
from xcit.errors import XCiTError
from xcit.training.engine.config import RunConfig
from xcit.training.engine.task import Layout
from xcit.zoo import save_model
from xcit.zoo.changes import Changes
from xcit.zoo.kinds import kind_of_config


class Loader(Protocol):
    """The interface of a loader of training data; `TrainLoader` implements it.

    Attributes:
        num_steps: number of optimiser steps per epoch.
        num_inputs: number of training images.
        unreadable: one line for each training image that this process could not read.
    """

    num_steps: int
    num_inputs: int
    unreadable: list[str]

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        """Yields this process's parts (see `Layout`) of an epoch's batches, starting at step `first_step`."""

    def close(self) -> None:
        """Ends the processes that read data, if there are any."""


class TaskWithLoader:
    """A task that gets its training data from one loader."""

    config: Any
    info: Any
    _loader: Loader

    def close(self) -> None:
        """Ends the processes that read the training data."""
        self._loader.close()

    def export(self, model: nn.Module, path: Path) -> None:
        """Writes the weights, the model's config, the class names and the preprocessing to one safetensors file."""
        exported = kind_of_config(self.config.model).build(Changes(drop_path_rate=0.0).of(self.config.model))
        exported.load_state_dict(model.state_dict())
        exported.info = self.info
        save_model(exported, path)

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps per epoch."""
        return self._loader.num_steps

    @property
    def num_inputs(self) -> int:
        """Number of training images."""
        return self._loader.num_inputs

    @property
    def unreadable(self) -> Sequence[str]:
        """One line for each training image that this process could not read."""
        return self._loader.unreadable


def loader_config(run: RunConfig, layout: Layout, *, num_repeats: int = 1) -> LoaderConfig:
    """Returns the settings of this process's loader; `num_repeats` is the number of copies of an image in an epoch."""
    return LoaderConfig(
        batch_size=layout.batch_size,
        num_parts=layout.num_parts,
        world_size=layout.world_size,
        rank=layout.rank,
        seed=run.seed,
        num_workers=run.num_workers,
        num_repeats=num_repeats,
    )


def check_class_weights(weights: Sequence[float], num_classes: int, field: str = "class_weights") -> None:
    """Checks the weights of the classes in a loss.

    Args:
        weights: one number per class, or an empty sequence.
        num_classes: number of classes; 0 if it is not known yet.
        field: name of the config field, for the error message.

    Raises:
        XCiTError: if a weight is not above 0 or not finite, or if the number of weights is not the number of classes.
    """
    if not all(0 < weight < math.inf for weight in weights):
        raise XCiTError(f"{field} are {', '.join(map(str, weights))}, but must be above 0")
    if weights and num_classes not in (0, len(weights)):
        raise XCiTError(f"{len(weights)} {field} for {num_classes} classes: give one for each")


def class_weights_on(device: torch.device, weights: Sequence[float]) -> Tensor | None:
    """Returns the weights of K classes as a tensor (K,), or None if there are no weights (equal weights)."""
    return torch.tensor(weights, device=device) if weights else None


def with_classes_of(config: Any, num_classes: int) -> Any:
    """Returns a task's config in which a `model.num_classes` of 0 is replaced by the number of classes of the data.

    Raises:
        XCiTError: if `model.num_classes` is not 0, and is not the number of classes of the data.
    """
    if config.model.num_classes not in (0, num_classes):
        raise XCiTError(
            f"{config.data} has {num_classes} classes, the model has {config.model.num_classes}: "
            f"set model.num_classes to {num_classes}"
        )
    return replace(config, model=replace(config.model, num_classes=num_classes))
