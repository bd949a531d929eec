"""A model ready to answer: of the right kind, with its weights, in place."""

import os
from typing import Any

import torch
from torch import nn

from xcit.inference.reading import default_device
from xcit.zoo import check_task, get_model
from xcit.zoo.kinds import Config, Info, Kind, Model


def prepare_of_kind(
    kind: Kind[Config, Info, Model],
    model: str | os.PathLike[str] | nn.Module,
    device: str | torch.device | None,
    *,
    what: str = "the model",
) -> tuple[Model, torch.device]:
    """A model of a kind, not yet fused, and the device that it is meant for.

    Args:
        kind: of model.
        model: a name (its published weights are downloaded once), a weights file, or a model.
        device: none is where a model that was passed in is, else a GPU if there is one, else the CPU.
        what: what a model that was passed in is called in errors.

    Raises:
        XCiTError: if it can't be had, or is of another kind.
    """
    built: Any = model
    if not isinstance(model, nn.Module):
        check_task(model, kind.task)
        what, built = os.fspath(model), get_model(model, pretrained=True)
    network = kind.require(built, what)
    if device is not None:
        return network, torch.device(device)
    return network, next(network.parameters()).device if built is model else default_device()
