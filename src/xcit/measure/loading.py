"""Loads a checkpoint to be measured with a recipe."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from xcit.deploy import is_exported, load_exported
from xcit.errors import XCiTError
from xcit.measure.result import Measuring
from xcit.models import XCiT
from xcit.zoo import find_record, load_as, load_record
from xcit.zoo.kinds import Config, Info, Kind, Model
from xcit.zoo.names import is_file


def load_for(recipe: Any, checkpoint: str | os.PathLike[str], kind: Kind[Config, Info, Model]) -> Model:
    """Loads a checkpoint of a model with the same architecture as the recipe's model. The classes may differ.

    Args:
        recipe: the config of a recipe or run.
        checkpoint: a path, a URL or a published name.
        kind: classifier, segmenter or detector, whichever the recipe trains.

    Raises:
        XCiTError: if the checkpoint can't be loaded, or its model has another architecture.
    """
    name = os.fspath(checkpoint)
    if is_exported(checkpoint):
        exported = kind.require(load_exported(checkpoint), name)
        if _shape(exported.config, kind) != _shape(recipe.model, kind):
            raise XCiTError(f"the exported model {name} has another architecture than the model of {recipe.name}")
        return exported
    if is_file(checkpoint) or "://" in name:
        # In some recipes the number of classes is 0, which means that it comes from the training data.
        return kind.require(load_as(recipe.model, name, num_classes=None if recipe.model.num_classes else 0), name)
    record = find_record(name)
    if record.kind is not kind:
        raise XCiTError(f"{name} is no {kind.name}, but {recipe.name} trains a {kind.name}")
    if record.recipe != recipe.name and _shape(record.model, kind) != _shape(recipe.model, kind):
        raise XCiTError(f"{record.name} does not fit {recipe.name}: the model's recipe is {record.recipe}")
    return kind.require(load_record(record), name)


def fused_for(model: XCiT, how: Measuring) -> nn.Module:
    """Moves a classifier to the device of the measurement, and fuses it if the dtype is float32.

    Other dtypes are used by autocast, which keeps the sums of the residual connections in float32. A fused model would
    compute these sums in the lower precision.
    """
    return (model.fuse() if how.dtype == torch.float32 else model).to(how.device)


def _shape(config: Any, kind: Kind[Any, Any, Any]) -> Any:
    """Returns a copy of a config with 0 in the fields that may differ: number of classes and stochastic depth."""
    backbone = replace(kind.backbone(config), num_classes=0, drop_path_rate=0.0)
    return backbone if kind.backbone(config) is config else replace(config, num_classes=0, backbone=backbone)
