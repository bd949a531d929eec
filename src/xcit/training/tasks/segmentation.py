"""Semantic segmentation: the loss, the figures, and the wiring of the data."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from xcit.data.loader import TrainLoader
from xcit.data.segmentation import IGNORED, LabelledScenes, Labels, open_scenes
from xcit.data.segmentation_transforms import SegmentationAugmentation, augmented_scene, resized_pixels
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.resize_8bit import Pixels
from xcit.inference.segment import SlidingWindow, predict_labels
from xcit.models import Segmenter, SegmenterConfig, SegmenterInfo, build_segmenter
from xcit.models.modes import evaluating
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import ALONE, Layout, Reduce
from xcit.training.tasks.base import (
    TaskWithLoader,
    check_class_weights,
    class_weights_on,
    loader_config,
    with_classes_of,
)
from xcit.training.tasks.dense_backbone import take_backbone
from xcit.training.tasks.evaluation import EvaluationConfig, none_readable, one_by_one
from xcit.training.tasks.sources import find_source

AUXILIARY_WEIGHT = 0.4
"""Of the auxiliary head's loss, as published."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """A whole segmentation run.

    Attributes:
        name: of the recipe or run, which the exported model keeps.
        task: says in a file that this is such a config.
        model: its shape; `num_classes` 0 means as many as the data have.
        preprocessing: normalisation, and the size at which the run is measured; training draws its sizes around it.
        data: a folder, see `open_scenes`.
        backbone_weights: what the backbone starts from: a name of the zoo or a file, of a classifier, a feature
            backbone or a segmenter; "" is random weights.
        epoch_steps: iterations that count as an epoch, after which the run is measured and saved, however many passes
            over the data they are; 0 is one pass.
        class_weights: what a pixel of a class counts in the loss, a number a class; none counts all the same.
        focal_gamma: of the focal loss (arXiv 1708.02002), in which a pixel whose class has probability p counts
            (1 - p)^gamma; 0 is cross-entropy.
        ignore_exif: whether label maps were drawn on the pixels as they are stored, not as a viewer turns them.
        ignore_index: a label whose pixels count neither in the loss nor in a figure, beside 255.
        augmentation: of training scenes.
        optimizer: AdamW's numbers.
        schedule: epochs and learning rate.
        run: how to compute.
    """

    name: str
    task: Literal["segmentation"] = "segmentation"
    model: SegmenterConfig
    preprocessing: SegmentationPreprocessing
    data: str = ""
    backbone_weights: str = ""
    epoch_steps: int = 0
    class_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    ignore_index: int | None = None
    ignore_exif: bool = False
    augmentation: SegmentationAugmentation = field(default_factory=SegmentationAugmentation)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.epoch_steps < 0:
            raise XCiTError(f"epoch_steps is {self.epoch_steps}, must be 0 or more")
        check_class_weights(self.class_weights, self.model.num_classes)
        if not 0 <= self.focal_gamma < math.inf:
            raise XCiTError(f"focal_gamma is {self.focal_gamma}, must be 0 or more")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= IGNORED:
            raise XCiTError(f"ignore_index is {self.ignore_index}, must be a label from 0 to {IGNORED}, or null")
        patch = self.model.backbone.patch_size
        if self.augmentation.crop_size < patch:
            raise XCiTError(
                f"augmentation.crop_size is {self.augmentation.crop_size}, smaller than one patch of {patch}x{patch}"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """Figures of a segmenter on labelled scenes, in percent.

    Attributes:
        num_images: scenes that were measured.
        miou: mean over the classes of intersection over union; classes that are neither true nor predicted anywhere
            are left out.
        macc: mean over the classes that are true somewhere of the share of their pixels that is right.
        aacc: share of all pixels that is right.
        iou: of each class, NaN where it is left out.
        confusion: (K, K) counts of pixels, a row a true class, a column a predicted one.
        unreadable: one line for each scene that could not be read, and so was not measured.
    """

    num_images: int
    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    confusion: Tensor
    unreadable: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """The scalars, by name."""
        return {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc}


def count_pixels(labels: Labels, predicted: Labels, num_classes: int) -> Tensor:
    """Confusion (K, K) of two label maps of one size, a row a true class; pixels without a label do not count."""
    counted = labels != IGNORED
    true, guess = (torch.from_numpy(values[counted]).long() for values in (labels, predicted))
    return torch.bincount(true * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


def report_of(
    confusion: Tensor, *, num_images: int, unreadable: Sequence[str] = (), ignored: int | None = None
) -> SegmentationReport:
    """The figures of a confusion (K, K) of int64 counts; a class that is ignored has no IoU."""
    counts = confusion.double()
    right, true = counts.diagonal(), counts.sum(dim=1)
    iou = 100 * right / (true + counts.sum(dim=0) - right)  # 0 / 0 is NaN: neither true nor predicted
    if ignored is not None and ignored < len(iou):
        iou[ignored] = math.nan
    return SegmentationReport(
        num_images=num_images,
        miou=iou.nanmean().item(),
        macc=100 * (right / true).nanmean().item(),
        aacc=100 * (right.sum() / true.sum()).item(),
        iou=tuple(iou.tolist()),
        confusion=confusion,
        unreadable=tuple(unreadable),
    )


class _MeasuredScenes(Dataset[tuple[Pixels | None, Labels | None, str]]):
    """Pixels as the model sees them, labels at the scene's own size, and ""; or nothing and why."""

    def __init__(self, scenes: LabelledScenes, spec: SegmentationPreprocessing) -> None:
        self.scenes, self.spec = scenes, spec

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Pixels | None, Labels | None, str]:
        try:
            scene, _ = self.scenes[index]
            return resized_pixels(scene.image, self.spec), scene.labels, ""
        except XCiTError as error:
            return None, None, str(error)


def evaluate_segmentation(
    model: nn.Module,
    scenes: LabelledScenes,
    spec: SegmentationPreprocessing,
    how: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    *,
    window: SlidingWindow | None = None,
    layout: Layout = ALONE,
    reduce: Reduce = lambda tensor: tensor,
    report: Callable[[int], None] = lambda _: None,
) -> SegmentationReport:
    """Measures a segmenter on labelled scenes, one at a time at their own sizes, each counted once.

    Args:
        model: a segmenter; it is put in evaluation mode for the time.
        scenes: what to measure on; their labels index the logits.
        spec: how an image becomes the model's input.
        how: processes that read, device and precision.
        window: how to go over an image; none takes it whole.
        layout: which of several processes this is; each takes its share of the scenes.
        reduce: sums over the processes, so that every one of them gets the figures of all scenes.
        report: called with 1 after each scene.

    Returns:
        The figures; the lines about unreadable scenes are this process's.

    Raises:
        XCiTError: if not one scene could be read.
    """
    assert isinstance(model, Segmenter)
    device = how.place(model)
    loader = one_by_one(_MeasuredScenes(scenes, spec), len(scenes), layout, how.num_workers)
    num_classes = model.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    num_images, unreadable = 0, list[str]()
    with evaluating(model):
        for pixels, labels, reason in loader:
            if reason:
                unreadable.append(reason)
            else:
                predicted = predict_labels(
                    model, pixels, spec, size=labels.shape, window=window, device=device, dtype=how.dtype
                )
                confusion += count_pixels(labels, predicted, num_classes)
                num_images += 1
            report(1)
    confusion = reduce(confusion.to(device)).cpu()
    num_images = int(reduce(torch.tensor([num_images], device=device)).item())
    if num_images == 0:
        raise none_readable(len(scenes), "scenes", unreadable)
    return report_of(confusion, num_images=num_images, unreadable=unreadable, ignored=scenes.ignored)


def pixel_loss(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, K, H, W) against labels (B, H, W), or the focal loss, averaged over all pixels.

    loss = sum over pixels of weights[c] (1 - p)^gamma (-log p) / (B H W), with c a pixel's class and p its probability.
    Pixels without a label add nothing to the sum, but count in the average, and weights do not: as the published models
    were trained.
    """
    logits, labels = logits.float(), labels.long()
    if not focal_gamma:
        return F.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum") / labels.numel()
    weighted, plain = (
        F.cross_entropy(logits, labels, numbers, ignore_index=IGNORED, reduction="none") for numbers in (weights, None)
    )
    # The bound is below what is not 0 in float32: of 0 a power below 1 has no derivative.
    distance = (-torch.expm1(-plain)).clamp(min=1e-9)
    return (distance**focal_gamma * weighted).sum() / labels.numel()


class SegmentationTask(TaskWithLoader):
    """Wires a config's data, augmentation, first weights and loss to the engine.

    Attributes:
        config: with the data's number of classes where it was left open.
        notes: lines that say what was found.
        problems: lines about what is not as it should be in the data.

    Raises:
        XCiTError: if the data are missing, or have other classes than the model, or weights can't be had or do not fit.
    """

    watch = "mIoU"

    def __init__(self, config: SegmentationConfig, layout: Layout | None = None) -> None:
        layout = layout or Layout(batch_size=config.run.batch_size)
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: set data to a folder")
        if config.backbone_weights:
            find_source(config.backbone_weights, "backbone_weights")
        train, self.watched = (
            open_scenes(config.data, split, ignore_exif=config.ignore_exif).ignoring(config.ignore_index)
            for split in ("train", "val")
        )
        self.notes = (f"found {train.describe()}", f"watched by {len(self.watched)} images in {self.watched.source}")
        self.problems = tuple(dict.fromkeys([*train.problems, *self.watched.problems]))
        num_classes = len(train.class_names)
        self.config = config = with_classes_of(config, num_classes)
        torch.manual_seed(config.run.seed)
        model = build_segmenter(config.model)
        if config.backbone_weights:
            take_backbone(model, config.backbone_weights)
        self.model: nn.Module = model
        self.info = SegmenterInfo(name=config.name, preprocessing=config.preprocessing, class_names=train.class_names)
        self._accumulation = layout.accumulation
        self._loader: TrainLoader[list[Tensor]] = TrainLoader(
            train,
            partial(augmented_scene, config=config.augmentation, spec=config.preprocessing),
            loader_config(config.run, layout),
        )

    @property
    def num_steps(self) -> int:
        """Optimiser steps an epoch; 0 where there are fewer scenes than a batch."""
        return (self.config.epoch_steps or self._loader.num_steps) if self._loader.num_steps else 0

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """This process's parts [images (B, C, h, w), labels (B, h, w)] of an epoch's batches, from a step on."""
        parts = self._endless(epoch * self.num_steps + first_step)
        return islice(parts, (self.num_steps - first_step) * self._accumulation)

    def _endless(self, step: int) -> Iterator[list[Tensor]]:
        """The parts of all batches from a step of the run on, pass after pass over the data."""
        number, first_step = divmod(step, self._loader.num_steps)
        while True:
            for scenes, _ in self._loader.batches(number, first_step):
                yield scenes
            number, first_step = number + 1, 0

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The pixels' loss, with the auxiliary head's where there is one, and then both on their own."""
        images, labels = batch
        output = model(images, with_auxiliary=True)
        weights = class_weights_on(labels.device, self.config.class_weights)
        gamma = self.config.focal_gamma
        loss = pixel_loss(output.logits, labels, weights=weights, focal_gamma=gamma)
        if output.auxiliary is None:
            return {"loss": loss}
        auxiliary = pixel_loss(output.auxiliary, labels, weights=weights, focal_gamma=gamma)
        return {
            "loss": loss + AUXILIARY_WEIGHT * auxiliary,
            "head_loss": loss.detach(),
            "auxiliary_loss": auxiliary.detach(),
        }

    def evaluate(
        self, model: nn.Module, layout: Layout = ALONE, reduce: Reduce = lambda tensor: tensor
    ) -> dict[str, float]:
        """MIoU, mAcc and aAcc on the validation scenes, whole."""
        return evaluate_segmentation(
            model,
            self.watched,
            self.config.preprocessing,
            EvaluationConfig(num_workers=self.config.run.num_workers),
            layout=layout,
            reduce=reduce,
        ).figures()
