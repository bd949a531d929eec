"""Image classification: the config, the loss, the evaluation, and the task that the engine trains."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.loader import AugmentationConfig, train_transform
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
from xcit.training.tasks.distillation import DistillationConfig, check_teacher, load_teacher
from xcit.training.tasks.evaluation import EvaluationConfig, logits_of, none_readable
from xcit.training.tasks.initialization import InitializeConfig, check_initialize, initialize
from xcit.training.tasks.labelled_data import LabelledData, num_images_of, open_data, train_loader
from xcit.training.tasks.low_rank import LoRAConfig, TaskWithAdapters, adapt


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """The config of a classification run.

    Attributes:
        name: name of the recipe or run. The exported model gets the same name.
        task: name of the task. In a YAML file, it determines the class of the config.
        model: architecture of the model; `num_classes` 0 means the number of classes of the data.
        preprocessing: preprocessing in evaluation. Training uses only its image size and normalisation.
        data: a folder or a known name (see `open_labelled_images`), or a stream (see `open_stream`).
        val_data: the validation images, if they are not in `data`. If `data` is a stream, this field is required.
        holdout: number of training images to hold out for validation. A number below 1 is a share of the images. With
            0, the validation split is used. With None (null in YAML), a fifth of the images is held out if
            `data` is a folder without a validation split.
        class_map: a file that maps the names of folders, or the labels in a list, to classes of the model (names or
            indices). It is used for `data` and `val_data` (see `read_class_map`).
        shuffle_buffer: for a stream: number of encoded images that each worker keeps in memory to shuffle them.
        class_weights: weight of each class in the loss, one number per class (see `weighted_cross_entropy`); if empty,
            all classes have the same weight. The loss of distillation has no class weights.
        augmentation: augmentation of training images.
        initialize: initial weights and frozen stages.
        lora: low-rank adapters, which are trained instead of the model's own weights.
        distillation: the teacher of knowledge distillation, if any.
        optimizer: optimiser and its settings.
        schedule: number of epochs, and the schedule of the learning rate.
        run: batch size, precision and other settings of the run.
    """

    name: str
    task: Literal["classification"] = "classification"
    model: XCiTConfig
    preprocessing: Preprocessing
    data: str = ""
    val_data: str = ""
    holdout: float | None = 0.0
    class_map: str = ""
    shuffle_buffer: int = 2000
    class_weights: tuple[float, ...] = ()
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    initialize: InitializeConfig = field(default_factory=InitializeConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.holdout and self.val_data:
            raise XCiTError("give holdout or val_data, not both: a run is validated on one of them")
        if self.holdout is not None and not 0 <= self.holdout < math.inf:
            raise XCiTError(f"holdout is {self.holdout}, but must be a number of images, or a share below 1")
        if self.shuffle_buffer < 1:
            raise XCiTError(f"shuffle_buffer is {self.shuffle_buffer}, but must be at least 1")
        check_class_weights(self.class_weights, self.model.num_classes)


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """Results of the evaluation of a classifier on labelled images.

    Attributes:
        num_images: number of images that could be read and were evaluated.
        top1: percentage of these images for which the class with the highest logit is right.
        top5: percentage of these images for which the right class has one of the five highest logits.
        loss: mean cross-entropy (natural logarithm).
        confusion: (num_classes, num_classes), numbers of images; rows are true classes, columns are predicted classes.
        unreadable: one line for each image that could not be read.
    """

    num_images: int
    top1: float
    top5: float
    loss: float
    confusion: Tensor
    unreadable: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """Returns the scalars, by name."""
        return {"top1": self.top1, "top5": self.top5, "val_loss": self.loss}


def evaluate_classification(
    model: nn.Module,
    images: LabelledData,
    spec: Preprocessing,
    how: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    *,
    num_classes: int,
    layout: Layout = ALONE,
    reduce: Reduce = lambda tensor: tensor,
    report: Callable[[int], None] = lambda _: None,
) -> ClassificationReport:
    """Evaluates a classifier on labelled images. Each image is counted once.

    Args:
        model: a model that returns logits (B, num_classes). It is in evaluation mode during the evaluation.
        images: the images to evaluate; their labels are indices of the logits.
        spec: the preprocessing of the images.
        how: batch size, number of workers, device and precision.
        num_classes: number of classes of the model.
        layout: rank of this process, and number of processes. Each process evaluates its share of the images.
        reduce: sums a tensor over the processes, so that every process gets the results for all images.
        report: called with the number of images of each batch.

    Returns:
        The results. The lines about unreadable images are only those of this process.

    Raises:
        XCiTError: if no image could be read.
    """
    device = how.place(model)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    num_right5, loss_sum, unreadable = 0, 0.0, list[str]()
    for logits, labels in logits_of(model, images, spec, how, layout=layout, unreadable=unreadable, report=report):
        logits = logits.cpu()
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        ranked = logits.topk(min(5, num_classes), dim=-1).indices
        num_right5 += int((ranked == labels[:, None]).sum())
        confusion += torch.bincount(labels * num_classes + ranked[:, 0], minlength=num_classes**2).reshape(
            num_classes, num_classes
        )
    sums = reduce(torch.tensor([num_right5, loss_sum], dtype=torch.float64, device=device)).tolist()
    confusion = reduce(confusion.to(device)).cpu()
    num_images = int(confusion.sum())
    if num_images == 0:
        raise none_readable(num_images_of(images), "images", unreadable)
    return ClassificationReport(
        num_images=num_images,
        top1=100 * int(confusion.diagonal().sum()) / num_images,
        top5=100 * sums[0] / num_images,
        loss=sums[1] / num_images,
        confusion=confusion,
        unreadable=tuple(unreadable),
    )


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Computes the cross-entropy with a weight for each class. The targets may be mixed or smoothed labels.

    The loss is -sum(w[c] p[i, c] log q[i, c]) / sum(w[c] p[i, c]), with both sums over all images i and classes c. Here
    p[i, c] is the target, q[i, c] is the model's probability, and w[c] is the weight of class c. If each image has a
    single class, the loss is equal to torch's cross-entropy with class weights.

    Args:
        logits: (B, num_classes).
        targets: (B, num_classes), the share of each class in each image; each row sums to 1.
        weights: (num_classes,).
    """
    shares = targets * weights
    return -(shares * logits.float().log_softmax(dim=1)).sum() / shares.sum()


class ClassificationTask(TaskWithAdapters):
    """The classification task, built from a config: the model, data, loss and evaluation for the engine.

    Attributes:
        config: the config, in which a `num_classes` of 0 and a `holdout` of None are replaced by the values for the
            data.
        notes: lines for the user about the data.
        problems: lines for the user about problems in the data.

    Raises:
        XCiTError: if a name in the config is unknown, if the data are missing, if the classes of data and model
            differ, or if weights can't be loaded or do not fit. The names are checked before anything is read or
            downloaded.
    """

    watch = "top1"

    def __init__(self, config: ClassificationConfig, layout: Layout | None = None) -> None:
        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a folder of images by class")
        check_initialize(config.initialize, config.model)
        check_teacher(config.distillation, config.preprocessing, config.model.num_classes)
        opened = open_data(
            config.data,
            val_data=config.val_data,
            holdout=config.holdout,
            num_classes=config.model.num_classes,
            class_map=config.class_map,
        )
        train, self.watched = opened.train, opened.watched
        self.notes, self.problems = opened.notes, opened.problems
        num_classes = len(train.class_ids)
        self.config = config = replace(with_classes_of(config, num_classes), holdout=opened.holdout)
        torch.manual_seed(config.run.seed)
        model = XCiT(config.model)
        initialize(model, config.initialize)
        self.model: nn.Module = adapt(model, config.lora)
        # The teacher is not a part of the model, because it is neither trained nor saved.
        self._teacher = (
            load_teacher(config.distillation, config.preprocessing, num_classes=num_classes, class_ids=train.class_ids)
            if config.distillation.teacher
            else None
        )
        self.info = ModelInfo(name=config.name, preprocessing=config.preprocessing, class_names=train.class_ids)
        self._loader = train_loader(
            train,
            train_transform(config.augmentation, config.preprocessing),
            loader_config(config.run, layout, num_repeats=config.augmentation.num_repeats),
            shuffle_buffer=config.shuffle_buffer,
        )
        self._mixing = _mixing(config.augmentation, num_classes, layout.part_size)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's parts of an epoch's batches, from `first_step` on: images (B, C, h, w), labels (B,)."""
        return self._loader.batches(epoch, first_step)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the loss; with a teacher, also returns the loss against the labels and the teacher's loss."""
        images, targets = batch
        if self._mixing is not None:
            images, targets = self._mixing(images, targets)
        logits = model(images)
        label_loss = self._label_loss(logits, targets)
        if self._teacher is None:
            return {"loss": label_loss}
        teacher_loss = self._teacher.loss(images, logits)
        alpha = self.config.distillation.alpha
        return {
            "loss": (1 - alpha) * label_loss + alpha * teacher_loss,
            "label_loss": label_loss.detach(),
            "teacher_loss": teacher_loss.detach(),
        }

    def _label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss for labels (B,), or for mixed labels (B, num_classes), which include the label smoothing."""
        smoothing = self.config.augmentation.label_smoothing if targets.ndim == 1 else 0.0
        weights = class_weights_on(logits.device, self.config.class_weights)
        if weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        num_classes = len(weights)
        if targets.ndim == 1:
            targets = F.one_hot(targets, num_classes) * (1 - smoothing) + smoothing / num_classes
        return weighted_cross_entropy(logits, targets, weights)

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """Returns top-1 and top-5 accuracy (percent) and the loss on the validation images."""
        return evaluate_classification(
            model,
            self.watched,
            self.config.preprocessing,
            EvaluationConfig(batch_size=500, num_workers=self.config.run.num_workers),
            num_classes=self.config.model.num_classes,
            layout=layout,
            reduce=reduce,
        ).figures()


def _mixing(
    config: AugmentationConfig, num_classes: int, part_size: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (config.mixup or config.cutmix):
        return None
    if part_size % 2:
        raise XCiTError(
            f"mixup and cutmix need an even number of images at a time, not {part_size}: change run.batch_size or "
            "run.max_device_batch"
        )
    from timm.data import Mixup

    mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        switch_prob=config.switch,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
    return mixing
