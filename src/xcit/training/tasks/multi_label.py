"""Multi-label classification, in which an image can have several classes: config, loss, evaluation and task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.classification import LabelledImages, describe_classes
from xcit.data.loader import AugmentationConfig, TrainLoader, train_transform
from xcit.data.multi_label import MultiLabelImages, has_validation_list, open_multi_label
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.base import (
    check_class_weights,
    class_weights_on,
    loader_config,
    with_classes_of,
)
from xcit.training.tasks.evaluation import EvaluationConfig, logits_of, none_readable
from xcit.training.tasks.initialization import InitializeConfig, check_initialize, initialize
from xcit.training.tasks.labelled_data import held_out
from xcit.training.tasks.low_rank import LoRAConfig, TaskWithAdapters, adapt


@dataclass(frozen=True, kw_only=True)
class MultiLabelConfig:
    """The config of a multi-label run.

    Attributes:
        name: name of the recipe or run. The exported model gets the same name.
        task: name of the task. In a YAML file, it determines the class of the config.
        model: architecture of the model; `num_classes` 0 means the number of classes of the data.
        preprocessing: preprocessing in evaluation. Training uses only its image size and normalisation.
        data: a list of images, or a folder with lists, see `open_multi_label`.
        val_data: the validation images, if they are not in `data`.
        holdout: number of training images to hold out for validation. A number below 1 is a share of the images. With
            0, the validation list is used.
        class_weights: weight of each class in the loss, one number per class; if empty, all classes have the same
            weight.
        positive_weights: for each class, the weight of images that have the class, relative to images that do not have
            it. For a rare class, use the ratio of images without the class to images with the class. If empty, all
            these weights are 1.
        augmentation: augmentation of training images, without mixup, CutMix and label smoothing.
        initialize: initial weights and frozen stages.
        lora: low-rank adapters, which are trained instead of the model's own weights.
        optimizer: optimiser and its settings.
        schedule: number of epochs, and the schedule of the learning rate.
        run: batch size, precision and other settings of the run.
    """

    name: str
    task: Literal["multi-label"] = "multi-label"
    model: XCiTConfig
    preprocessing: Preprocessing
    data: str = ""
    val_data: str = ""
    holdout: float = 0.0
    class_weights: tuple[float, ...] = ()
    positive_weights: tuple[float, ...] = ()
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    initialize: InitializeConfig = field(default_factory=InitializeConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.holdout and self.val_data:
            raise XCiTError("give holdout or val_data, not both: a run is validated on one of them")
        for name in ("class_weights", "positive_weights"):
            check_class_weights(getattr(self, name), self.model.num_classes, name)
        for name in ("mixup", "cutmix", "label_smoothing"):
            if getattr(self.augmentation, name):
                raise XCiTError(
                    f"augmentation.{name}: images with several classes can't be mixed or smoothed: set this field to 0"
                )


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport:
    """Results of the evaluation of a classifier on images that can have several classes.

    Attributes:
        num_images: number of images that could be read and were evaluated.
        average_precision: average precision of each class, in percent; NaN if no image has the class.
        loss: mean of the binary cross-entropies of all images and classes (natural logarithm).
        unreadable: one line for each image that this process could not read.
    """

    num_images: int
    average_precision: tuple[float, ...]
    loss: float
    unreadable: tuple[str, ...]

    @property
    def mean_average_precision(self) -> float:
        """Average precision in percent, averaged over the classes that occur in at least one image."""
        return torch.tensor(self.average_precision, dtype=torch.float64).nanmean().item()

    def figures(self) -> dict[str, float]:
        """Returns the scalars, by name."""
        return {"mAP": self.mean_average_precision, "val_loss": self.loss}


def average_precision_of(scores: Tensor, targets: Tensor) -> float:
    """Computes the average precision of one class.

    The scores are the thresholds, from high to low. At each threshold, the precision is multiplied by the increase in
    recall since the previous threshold. The average precision is the sum of these products.

    Args:
        scores: (N,), scores of the class for N images. Images with equal scores have the same threshold.
        targets: (N,), 1 for an image that has the class, otherwise 0.

    Returns:
        The average precision, 0..1; NaN if no image has the class.
    """
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], targets[order].double().cumsum(dim=0)
    if not len(hits) or hits[-1] == 0:
        return math.nan
    # There is a threshold after the last image of each group of equal scores.
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
    precision = (hits / torch.arange(1, len(hits) + 1))[ends]
    gains = hits[ends].diff(prepend=torch.zeros(1, dtype=torch.float64)) / hits[-1]
    return (precision * gains).sum().item()


def evaluate_multi_label(
    model: nn.Module,
    images: LabelledImages,
    targets: Tensor,
    spec: Preprocessing,
    how: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    *,
    layout: Layout = ALONE,
    reduce: Reduce = lambda tensor: tensor,
    report: Callable[[int], None] = lambda _: None,
) -> MultiLabelReport:
    """Evaluates a classifier on images that can have several classes. Each image is counted once.

    Args:
        model: a model that returns logits (B, K). It is in evaluation mode during the evaluation.
        images: the images to evaluate; the label of an image is the index of its row in `targets`.
        targets: (N, K), 1 if an image has a class, otherwise 0.
        spec: the preprocessing of the images.
        how: batch size, number of workers, device and precision.
        layout: rank of this process, and number of processes. Each process evaluates its share of the images.
        reduce: sums a tensor over the processes, so that every process gets the results for all images.
        report: called with the number of images of each batch.

    Raises:
        XCiTError: if no image could be read.
    """
    device = how.place(model)
    # Each process fills in the rows of its own images. Other rows are 0, so the sum over the processes has all rows.
    scores, seen = torch.zeros(targets.shape, device=device), torch.zeros(len(targets), device=device)
    unreadable = list[str]()
    for logits, rows in logits_of(model, images, spec, how, layout=layout, unreadable=unreadable, report=report):
        scores[rows.to(device)], seen[rows.to(device)] = logits, 1
    measured = reduce(seen).cpu() > 0
    scores, truth = reduce(scores).cpu()[measured], targets[measured]
    if not len(scores):
        raise none_readable(len(images), "images", unreadable)
    return MultiLabelReport(
        num_images=len(scores),
        average_precision=tuple(100 * average_precision_of(*pair) for pair in zip(scores.T, truth.T, strict=True)),
        loss=F.binary_cross_entropy_with_logits(scores.double(), truth.double()).item(),
        unreadable=tuple(unreadable),
    )


class MultiLabelTask(TaskWithAdapters):
    """The multi-label task, built from a config: the model, data, loss and evaluation for the engine.

    Attributes:
        config: the config, in which a `num_classes` of 0 is replaced by the number of classes of the data.
        notes: lines for the user about the data.

    Raises:
        XCiTError: if the data are missing, if the classes of data and model differ, or if weights can't be loaded or
            do not fit.
    """

    watch = "mAP"

    def __init__(self, config: MultiLabelConfig, layout: Layout | None = None) -> None:
        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a list of images")
        check_initialize(config.initialize, config.model)
        listed = open_multi_label(config.data, "train")
        train, self._watched = self._split(config, listed)
        self.notes = (f"found {describe_classes(listed)}", f"validated on {len(self._watched[0])} images")
        self.config = config = with_classes_of(config, len(listed.class_ids))
        torch.manual_seed(config.run.seed)
        model = XCiT(config.model)
        initialize(model, config.initialize)
        self.model: nn.Module = adapt(model, config.lora)
        self._targets = listed.targets
        self.info = ModelInfo(
            name=config.name,
            preprocessing=config.preprocessing,
            class_names=listed.class_ids,
            is_multi_label=True,
        )
        self._loader: TrainLoader[Tensor] = TrainLoader(
            train,
            train_transform(config.augmentation, config.preprocessing),
            loader_config(config.run, layout, num_repeats=config.augmentation.num_repeats),
        )

    def _split(
        self, config: MultiLabelConfig, listed: MultiLabelImages
    ) -> tuple[LabelledImages, tuple[LabelledImages, Tensor]]:
        """Returns the training images, and the validation images with their targets."""
        if config.holdout:
            if has_validation_list(config.data):
                raise XCiTError(
                    f"holdout is {config.holdout:g}, but {config.data} has a val.csv, which would not be used: do "
                    "not set holdout, or give train.csv as data"
                )
            train, watched = held_out(listed, config.holdout)
            return train, (watched, listed.targets)
        val = open_multi_label(config.val_data or config.data, "val", class_ids=listed.class_ids)
        return listed, (val, val.targets)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's parts of an epoch's batches: images (B, C, h, w) and targets (B, K), 0.0 or 1.0."""
        for images, rows in self._loader.batches(epoch, first_step):
            yield images, self._targets[rows].float()

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the mean of the weighted binary cross-entropies of all images and classes."""
        images, targets = batch
        logits = model(images).float()
        weights, positive = (
            class_weights_on(logits.device, numbers)
            for numbers in (self.config.class_weights, self.config.positive_weights)
        )
        return {"loss": F.binary_cross_entropy_with_logits(logits, targets, weights, pos_weight=positive)}

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """Returns the mean average precision (percent) and the loss on the validation images."""
        return evaluate_multi_label(
            model,
            *self._watched,
            self.config.preprocessing,
            EvaluationConfig(batch_size=500, num_workers=self.config.run.num_workers),
            layout=layout,
            reduce=reduce,
        ).figures()
