"""Finds published models by name, and builds models with weights from names and files."""

from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.checkpoints import CHECKPOINTS
from xcit.zoo.conversion import convert
from xcit.zoo.detectors import DETECTORS
from xcit.zoo.get import get_backbone, get_model, get_xcit
from xcit.zoo.load import fetch, load_as, load_record, weights_path
from xcit.zoo.names import RECORDS, check_task, find_checkpoint, find_record, list_models
from xcit.zoo.records import Accuracy, Checkpoint, DetectorRecord, Figure, Record, SegmenterRecord
from xcit.zoo.segmenters import SEGMENTERS
from xcit.zoo.stored import load_file, load_weights, save_model
from xcit.zoo.verification import verify

__all__ = [
    "ARCHITECTURES",
    "CHECKPOINTS",
    "DETECTORS",
    "RECORDS",
    "SEGMENTERS",
    "Accuracy",
    "Checkpoint",
    "DetectorRecord",
    "Figure",
    "Record",
    "SegmenterRecord",
    "check_task",
    "convert",
    "fetch",
    "find_checkpoint",
    "find_record",
    "get_backbone",
    "get_model",
    "get_xcit",
    "list_models",
    "load_as",
    "load_file",
    "load_record",
    "load_weights",
    "save_model",
    "verify",
    "weights_path",
]
