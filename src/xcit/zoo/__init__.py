"""Names to records to built models with weights."""

from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.checkpoints import CHECKPOINTS
from xcit.zoo.load import (
    fetch,
    get_backbone,
    get_model,
    load_as,
    load_checkpoint,
    load_file,
    load_weights,
    weights_path,
)
from xcit.zoo.names import find_checkpoint, list_models
from xcit.zoo.records import Accuracy, Checkpoint
from xcit.zoo.stored import save_model
from xcit.zoo.verification import verify

__all__ = [
    "ARCHITECTURES",
    "CHECKPOINTS",
    "Accuracy",
    "Checkpoint",
    "fetch",
    "find_checkpoint",
    "get_backbone",
    "get_model",
    "list_models",
    "load_as",
    "load_checkpoint",
    "load_file",
    "load_weights",
    "save_model",
    "verify",
    "weights_path",
]
