"""Loads a checkpoint as the model that a recipe trains."""

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
    """Loads a checkpoint's model, which must equal the recipe's model except for the classes.

    Args:
        recipe: the config of a recipe or run.
        checkpoint: a path, a URL or a name of the zoo.
        kind: the kind of the recipe's model.

    Raises:
        XCiTError: if the checkpoint can't be loaded, or is another model.
    """
    name = os.fspath(checkpoint)
    if is_exported(checkpoint):
        exported = kind.require(load_exported(checkpoint), name)
        if _shape(exported.config, kind) != _shape(recipe.model, kind):
            raise XCiTError(f"{name} was exported from another model than {recipe.name} trains")
        return exported
    if is_file(checkpoint) or "://" in name:
        # A recipe may leave the number of classes to the data it is trained on.
        return kind.require(load_as(recipe.model, name, num_classes=None if recipe.model.num_classes else 0), name)
    record = find_record(name)
    if record.kind is not kind:
        raise XCiTError(f"{name} is no {kind.name}, which {recipe.name} trains")
    if record.recipe != recipe.name and _shape(record.model, kind) != _shape(recipe.model, kind):
        raise XCiTError(f"{record.name} is no {recipe.name}: its recipe is {record.recipe}")
    return kind.require(load_record(record), name)


def fused_for(model: XCiT, how: Measuring) -> nn.Module:
    """Moves a classifier to the device where it is measured, and fuses it if the dtype is float32.

    With other dtypes it is not fused: autocast keeps the residual sums in float32, which a fused model would not do.
    """
    return (model.fuse() if how.dtype == torch.float32 else model).to(how.device)


def _shape(config: Any, kind: Kind[Any, Any, Any]) -> Any:
    """Returns a config without its number of classes and without fields that only affect training."""
    backbone = replace(kind.backbone(config), num_classes=0, drop_path_rate=0.0)
    return backbone if kind.backbone(config) is config else replace(config, num_classes=0, backbone=backbone)
