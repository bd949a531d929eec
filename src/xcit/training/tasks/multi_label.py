"""Multi-label classification: any number of classes an image, a binary loss for each, and mean average precision."""

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
    """A whole multi-label run.

    Attributes:
        name: of the recipe or run, which the exported model keeps.
        task: says in a file that this is such a config.
        model: its shape; `num_classes` 0 means as many as the data have.
        preprocessing: size and normalisation of the images in training, and all of it when measuring.
        data: a list of images, or a folder with lists, see `open_multi_label`.
        val_data: where to watch the run, if not in `data`.
        holdout: images taken off the training list to watch the run by; 0 watches the validation list.
        class_weights: what a class's term counts in the mean of all terms, a number a class; none counts all the same.
        positive_weights: what "is of the class" counts in a class's term where "is not" counts 1, a number a class: for
            a rare class the number of images that are not of it by that of those that are; none counts both the same.
        augmentation: of training images; several classes are not mixed or smoothed.
        initialize: first weights and frozen stages.
        lora: adapters that are trained in place of the model.
        optimizer: AdamW's numbers.
        schedule: epochs and learning rate.
        run: how to compute.
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
            raise XCiTError("give holdout or val_data, not both: a run is watched by one of them")
        for name in ("class_weights", "positive_weights"):
            check_class_weights(getattr(self, name), self.model.num_classes, name)
        for name in ("mixup", "cutmix", "label_smoothing"):
            if getattr(self.augmentation, name):
                raise XCiTError(
                    f"augmentation.{name}: the labels of several classes are not mixed or smoothed: set it to 0"
                )


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport:
    """Figures of a model on images of several classes each.

    Attributes:
        num_images: images that were measured.
        average_precision: of each class, in percent; NaN where no image is of it.
        loss: mean of the binary cross-entropies of all images and classes, natural logarithm.
        unreadable: one line for each image that could not be read, and so was not measured.
    """

    num_images: int
    average_precision: tuple[float, ...]
    loss: float
    unreadable: tuple[str, ...]

    @property
    def mean_average_precision(self) -> float:
        """Over the classes that some image is of, in percent."""
        return torch.tensor(self.average_precision, dtype=torch.float64).nanmean().item()

    def figures(self) -> dict[str, float]:
        """The scalars, by name."""
        return {"mAP": self.mean_average_precision, "val_loss": self.loss}


def average_precision_of(scores: Tensor, targets: Tensor) -> float:
    """Average precision of one class, 0..1: the sum over all score thresholds of precision times the gain in recall.

    Args:
        scores: (N,); images of equal score pass a threshold together.
        targets: (N,), 1 where an image is of the class.

    Returns:
        NaN if no image is of it.
    """
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], targets[order].double().cumsum(dim=0)
    if not len(hits) or hits[-1] == 0:
        return math.nan
    # A threshold lies behind the last of each group of equal scores.
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
    """Measures a classifier on images of several classes each, each image counted once.

    Args:
        model: gives logits (B, K); it is put in evaluation mode for the time.
        images: what to measure on; the label of each is its row in `targets`.
        targets: (N, K) of 0 and 1.
        spec: how an image becomes the model's input.
        how: batch size, processes that read, device and precision.
        layout: which of several processes this is; each takes its share of the images.
        reduce: sums over the processes, so that every one of them gets the figures of all images.
        report: called with the number of images of each batch.

    Raises:
        XCiTError: if not one image could be read.
    """
    device = how.place(model)
    # Each process fills in its own rows, and the sum has all.
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
    """Wires a config's data, augmentation, first weights and loss to the engine.

    Attributes:
        config: with the data's number of classes where it was left open.
        notes: lines that say what was found.

    Raises:
        XCiTError: if the data are missing, or have other classes than the model, or weights can't be had or do not fit.
    """

    watch = "mAP"

    def __init__(self, config: MultiLabelConfig, layout: Layout | None = None) -> None:
        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a list of images")
        check_initialize(config.initialize, config.model)
        listed = open_multi_label(config.data, "train")
        train, self._watched = self._split(config, listed)
        self.notes = (f"found {describe_classes(listed)}", f"watched by {len(self._watched[0])} images")
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
        """What is trained on, and what the run is watched by with its targets."""
        if config.holdout:
            if has_validation_list(config.data):
                raise XCiTError(
                    f"holdout is {config.holdout:g}, but {config.data} has a val.csv, which would go unused: leave "
                    "holdout out, or give train.csv as data"
                )
            train, watched = held_out(listed, config.holdout)
            return train, (watched, listed.targets)
        val = open_multi_label(config.val_data or config.data, "val", class_ids=listed.class_ids)
        return listed, (val, val.targets)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's parts (images (B, C, h, w), targets (B, K) of 0 and 1, float32) of an epoch's batches."""
        for images, rows in self._loader.batches(epoch, first_step):
            yield images, self._targets[rows].float()

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The mean of the binary cross-entropies of all images and classes."""
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
        """Mean average precision and loss on the images the run is watched by."""
        return evaluate_multi_label(
            model,
            *self._watched,
            self.config.preprocessing,
            EvaluationConfig(batch_size=500, num_workers=self.config.run.num_workers),
            layout=layout,
            reduce=reduce,
        ).figures()
