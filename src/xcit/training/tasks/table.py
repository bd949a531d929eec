"""The table of tasks: everything about a task that is needed to start, resume or describe a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xcit.data.classification import has_validation
from xcit.data.coco_places import has_annotations_of
from xcit.data.multi_label import has_validation_list
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask
from xcit.training.tasks.detection import DetectionConfig, DetectionTask
from xcit.training.tasks.dino import DINOConfig, DINOTask
from xcit.training.tasks.low_rank import check_lora
from xcit.training.tasks.multi_label import MultiLabelConfig, MultiLabelTask
from xcit.training.tasks.segmentation import SegmentationConfig, SegmentationTask

TrainingConfig = ClassificationConfig | MultiLabelConfig | DINOConfig | SegmentationConfig | DetectionConfig
"""The config of a run of any task."""

AnyTask = ClassificationTask | MultiLabelTask | DINOTask | SegmentationTask | DetectionTask


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """The entry of a task in the table.

    Attributes:
        config: class of the task's configs.
        task: class of the task; its arguments are a config and a layout.
        first_weights: name of the config field for the initial weights; "" if there is no such field.
        resumed: function that takes the value of the field that `first_weights` names, and returns the value for a
            resumed run. The returned value does not refer to a weights file, because the checkpoint contains all
            weights, and the original file may no longer exist.
        images: description of the data for messages, such as "images by class".
        check: function that checks the config of a new run before anything is loaded.
        flattered: function that returns a warning if the figures will be too good, because they are measured on
            training images; otherwise "".
    """

    config: type[TrainingConfig]
    task: Callable[..., AnyTask]
    first_weights: str = ""
    resumed: Callable[[Any], Any] = lambda value: value
    images: str = "images"
    flattered: Callable[[Any], str] = lambda config: ""
    check: Callable[[Any], None] = lambda config: None


def _check_adapters(config: ClassificationConfig | MultiLabelConfig) -> None:
    check_lora(config.lora, config.initialize, config.run)


def _flattered_classifier(config: ClassificationConfig) -> str:
    if config.holdout or config.val_data or has_validation(config.data):
        return ""
    return (
        f"{config.data} has no folder val: the figures are measured on the training images; set holdout to hold out "
        "images for validation"
    )


def _flattered_multi_label(config: MultiLabelConfig) -> str:
    if config.holdout or config.val_data or has_validation_list(config.data):
        return ""
    return (
        f"{config.data} has no validation images: the figures are measured on the training images; set holdout to hold "
        "out images for validation"
    )


def _flattered_detector(config: DetectionConfig) -> str:
    if has_annotations_of(config.data, "val"):
        return ""
    return f"{config.data} has no validation images: the figures are measured on the training images"


TASKS: dict[str, TaskKind] = {
    "classification": TaskKind(
        config=ClassificationConfig,
        task=ClassificationTask,
        first_weights="initialize",
        resumed=lambda initialize: initialize.frozen_only(),
        images="images by class",
        flattered=_flattered_classifier,
        check=_check_adapters,
    ),
    "multi-label": TaskKind(
        config=MultiLabelConfig,
        task=MultiLabelTask,
        first_weights="initialize",
        resumed=lambda initialize: initialize.frozen_only(),
        images="images with a list of their classes",
        flattered=_flattered_multi_label,
        check=_check_adapters,
    ),
    "dino": TaskKind(config=DINOConfig, task=DINOTask),
    "segmentation": TaskKind(
        config=SegmentationConfig, task=SegmentationTask, first_weights="backbone_weights", resumed=lambda _: ""
    ),
    "detection": TaskKind(
        config=DetectionConfig,
        task=DetectionTask,
        first_weights="backbone_weights",
        resumed=lambda _: "",
        flattered=_flattered_detector,
    ),
}
"""Maps the name of each task to its entry. The name is also the value of the field `task` in a config."""
