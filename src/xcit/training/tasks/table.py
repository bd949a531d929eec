"""The table of tasks: what starting, resuming and describing a run ask of a task."""

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
"""The config of a run, whatever its task."""

AnyTask = ClassificationTask | MultiLabelTask | DINOTask | SegmentationTask | DetectionTask


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """One task.

    Attributes:
        config: the class of its configs.
        task: its class, called with a config and a layout.
        first_weights: the config's field that says what a model starts from; "" if there is none.
        resumed: that field's value for a run that goes on: what it started from is in its checkpoints, and may be gone.
        images: what its data are, in messages.
        check: finds what is wrong in the config of a new run before anything is loaded.
        flattered: why a config's figures would be of images that are trained on; "" if they are not.
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
        f"{config.data} has no folder val: the figures are of the images that are trained on; set "
        "holdout to keep so many of them to measure on"
    )


def _flattered_multi_label(config: MultiLabelConfig) -> str:
    if config.holdout or config.val_data or has_validation_list(config.data):
        return ""
    return (
        f"{config.data} is all there is: the figures are of the images that are trained on; set holdout to keep so "
        "many of them to measure on"
    )


def _flattered_detector(config: DetectionConfig) -> str:
    if has_annotations_of(config.data, "val"):
        return ""
    return f"{config.data} is all there is: the figures are of the images that are trained on"


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
"""By a config's field `task`."""
