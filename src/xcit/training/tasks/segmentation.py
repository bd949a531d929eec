"""Semantic segmentation: the config, the loss, the evaluation, and the task that the engine trains.

A scene is an image with its label map.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from xcit.data.inputs import as_stored
from xcit.data.loader import TrainLoader
from xcit.data.segmentation import IGNORED, LabelledScenes, Labels, open_scenes
from xcit.data.segmentation_transforms import SegmentationAugmentation, augmented_scene, resized_pixels
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.resize_8bit import Pixels
from xcit.inference.full_size import FullSize
from xcit.inference.reading import Unreadable
from xcit.inference.segment import SlidingWindow, predict_labels
from xcit.inference.segment_full_size import segment_large_each
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
"""Weight of the auxiliary head's loss, as published."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """The config of a segmentation run.

    Attributes:
        name: name of the recipe or run. The exported model gets the same name.
        task: name of the task. In a YAML file, it determines the class of the config.
        model: architecture of the model; `num_classes` 0 means the number of classes of the data.
        preprocessing: normalisation, and the image size in evaluation. In training, this size is multiplied by a random
            factor.
        data: a folder of scenes, see `open_scenes`.
        backbone_weights: initial weights of the backbone: the name or file of a classifier, a feature backbone, a
            detector or a segmenter; "" for random weights.
        epoch_steps: number of steps in an epoch. 0 means that an epoch is one pass over the data.
        class_weights: weight of each class in the loss, one number per class; if empty, all classes have the same
            weight.
        focal_gamma: exponent gamma of the focal loss (arXiv 1708.02002), which multiplies the loss of a pixel by
            (1 - p)^gamma. Here p is the probability of the pixel's true class. 0 means cross-entropy.
        ignore_index: label of pixels that are ignored in the loss and in the results; None if there is no such label.
            Pixels with label 255 are always ignored.
        ignore_exif: whether label maps refer to the image as it is stored, without the rotation in its EXIF data.
        augmentation: augmentation of training scenes.
        optimizer: optimiser and its settings.
        schedule: number of epochs, and the schedule of the learning rate.
        run: batch size, precision and other settings of the run.
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
            raise XCiTError(f"epoch_steps is {self.epoch_steps}, but must be 0 or more")
        check_class_weights(self.class_weights, self.model.num_classes)
        if not 0 <= self.focal_gamma < math.inf:
            raise XCiTError(f"focal_gamma is {self.focal_gamma}, but must be 0 or more")
        if self.ignore_index is not None and not 0 <= self.ignore_index <= IGNORED:
            raise XCiTError(f"ignore_index is {self.ignore_index}, but must be a label from 0 to {IGNORED}, or null")
        patch = self.model.backbone.patch_size
        if self.augmentation.crop_size < patch:
            raise XCiTError(
                f"augmentation.crop_size is {self.augmentation.crop_size}, smaller than one patch of {patch}x{patch}"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """Results of the evaluation of a segmenter on scenes.

    Attributes:
        num_images: number of scenes that could be read and were evaluated.
        miou: intersection over union (percent), averaged over the classes. A class is left out if it occurs neither in
            the labels nor in the predictions.
        macc: percentage of a class's pixels that are predicted correctly, averaged over the classes that occur in the
            labels.
        aacc: percentage of all pixels that are predicted correctly.
        iou: intersection over union (percent) of each class; NaN if the class is left out.
        confusion: (K, K), numbers of pixels; rows are true classes, columns are predicted classes.
        unreadable: one line for each scene that could not be read.
    """

    num_images: int
    miou: float
    macc: float
    aacc: float
    iou: tuple[float, ...]
    confusion: Tensor
    unreadable: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """Returns the scalars, by name."""
        return {"mIoU": self.miou, "mAcc": self.macc, "aAcc": self.aacc}


def count_pixels(labels: Labels, predicted: Labels, num_classes: int) -> Tensor:
    """Returns the confusion matrix (K, K) of two label maps of the same size. Rows are true classes.

    Pixels with the true label 255 are left out.
    """
    counted = labels != IGNORED
    true, guess = (torch.from_numpy(values[counted]).long() for values in (labels, predicted))
    return torch.bincount(true * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


def report_of(
    confusion: Tensor, *, num_images: int, unreadable: Sequence[str] = (), ignored: int | None = None
) -> SegmentationReport:
    """Computes the results from a confusion matrix (K, K) of int64 counts. The IoU of the class `ignored` is NaN."""
    counts = confusion.double()
    right, true = counts.diagonal(), counts.sum(dim=1)
    iou = 100 * right / (true + counts.sum(dim=0) - right)  # a class that does not occur gives 0 / 0, which is NaN
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
    """The scenes to evaluate. An item is (resized image, label map at the original size, "").

    For a scene that can't be read, the item is (None, None, reason).
    """

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
    full_size: FullSize | None = None,
    layout: Layout = ALONE,
    reduce: Reduce = lambda tensor: tensor,
    report: Callable[[int], None] = lambda _: None,
) -> SegmentationReport:
    """Evaluates a segmenter on scenes, one scene at a time. Each scene is counted once.

    Predictions and labels are compared at the original size of the scene.

    Args:
        model: a segmenter. It is in evaluation mode during the evaluation.
        scenes: the scenes to evaluate; their labels are indices of the logits.
        spec: the preprocessing of the images.
        how: number of workers, device and precision.
        window: sliding window over an image; None processes the whole image at once.
        full_size: options to process images at their original size, in stripes. None means that images are resized as
            `spec` says.
        layout: rank of this process, and number of processes. Each process evaluates its share of the scenes.
        reduce: sums a tensor over the processes, so that every process gets the results for all scenes.
        report: called with 1 after each scene.

    Returns:
        The results. The lines about unreadable scenes are only those of this process.

    Raises:
        XCiTError: if no scene could be read.
    """
    assert isinstance(model, Segmenter)
    device = how.place(model)
    num_classes = model.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    num_images, unreadable = 0, list[str]()
    with evaluating(model):
        if full_size is not None:
            results = _counted_whole(model, scenes, layout, spec, full_size)
        else:
            results = _counted(model, scenes, layout, spec, how, window, device)
        for counted in results:
            if isinstance(counted, str):
                unreadable.append(counted)
            else:
                confusion += counted
                num_images += 1
            report(1)
    confusion = reduce(confusion.to(device)).cpu()
    num_images = int(reduce(torch.tensor([num_images], device=device)).item())
    if num_images == 0:
        raise none_readable(len(scenes), "scenes", unreadable)
    return report_of(confusion, num_images=num_images, unreadable=unreadable, ignored=scenes.ignored)


def _counted(
    model: Segmenter,
    scenes: LabelledScenes,
    layout: Layout,
    spec: SegmentationPreprocessing,
    how: EvaluationConfig,
    window: SlidingWindow | None,
    device: torch.device,
) -> Iterator[Tensor | str]:
    """Yields the confusion matrix (K, K) of each scene in this process's share; for an unreadable scene, the reason."""
    for pixels, labels, reason in one_by_one(_MeasuredScenes(scenes, spec), len(scenes), layout, how.num_workers):
        if reason:
            yield reason
            continue
        predicted = predict_labels(
            model, pixels, spec, size=labels.shape, window=window, device=device, dtype=how.dtype
        )
        yield count_pixels(labels, predicted, model.num_classes)


def _counted_whole(
    model: Segmenter,
    scenes: LabelledScenes,
    layout: Layout,
    spec: SegmentationPreprocessing,
    full_size: FullSize,
) -> Iterator[Tensor | str]:
    """Yields the confusion matrix (K, K) of each scene in this process's share; for an unreadable scene, the reason.

    The images are processed at their original size. Pixels for which the image file has no data are left out.
    """
    info = SegmenterInfo(name="", preprocessing=spec)
    for index in layout.share(len(scenes)):
        path = scenes.items[index][0]
        try:
            labels = scenes.labels(index)
        except XCiTError as error:
            yield str(error)
            continue
        source = as_stored(path) if scenes.ignore_exif else path
        for found in segment_large_each([source], model, info, full_size):
            if isinstance(found, Unreadable):
                yield found.reason
            elif found.size != labels.shape:
                yield scenes.differing(index, labels, (found.size[1], found.size[0]))
            else:
                predicted = found.labels()
                yield count_pixels(
                    np.where(predicted == IGNORED, np.uint8(IGNORED), labels), predicted, model.num_classes
                )


def pixel_loss(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None, focal_gamma: float = 0.0) -> Tensor:
    """Computes the cross-entropy or focal loss of logits (B, K, H, W) for labels (B, H, W), averaged over all pixels.

    loss = sum over pixels of weights[c] (1 - p)^gamma (-log p) / (B H W), where c is the true class of a pixel, and p
    is the probability of class c. Unlabelled pixels add nothing to the sum, but they are counted in B H W. As in the
    training of the published models, the sum is divided by B H W, and not by the sum of the pixels' weights.
    """
    logits, labels = logits.float(), labels.long()
    if not focal_gamma:
        return F.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum") / labels.numel()
    weighted, plain = (
        F.cross_entropy(logits, labels, numbers, ignore_index=IGNORED, reduction="none") for numbers in (weights, None)
    )
    # The distance is 1 - p. It must not be 0, because the derivative of distance^gamma is infinite at 0 if gamma is
    # below 1. The clamp changes no other value: in float32, a distance above 0 is much larger than 1e-9.
    distance = (-torch.expm1(-plain)).clamp(min=1e-9)
    return (distance**focal_gamma * weighted).sum() / labels.numel()


class SegmentationTask(TaskWithLoader):
    """The segmentation task, built from a config: the model, data, loss and evaluation for the engine.

    Attributes:
        config: the config, in which a `num_classes` of 0 is replaced by the number of classes of the data.
        notes: lines for the user about the data.
        problems: lines for the user about problems in the data.

    Raises:
        XCiTError: if the data are missing, if the classes of data and model differ, or if weights can't be loaded or
            do not fit.
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
        self.notes = (f"found {train.describe()}", f"validated on {len(self.watched)} images in {self.watched.source}")
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
        """Number of optimiser steps per epoch; 0 if there are too few scenes for one batch."""
        return (self.config.epoch_steps or self._loader.num_steps) if self._loader.num_steps else 0

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[list[Tensor]]:
        """Yields this process's parts of an epoch's batches, from `first_step` on.

        A part is a list of images (B, C, h, w) and labels (B, h, w).
        """
        parts = self._endless(epoch * self.num_steps + first_step)
        return islice(parts, (self.num_steps - first_step) * self._accumulation)

    def _endless(self, step: int) -> Iterator[list[Tensor]]:
        """Yields the parts of all batches from step `step` of the run on, in endless passes over the data."""
        number, first_step = divmod(step, self._loader.num_steps)
        while True:
            for scenes, _ in self._loader.batches(number, first_step):
                yield scenes
            number, first_step = number + 1, 0

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Returns the loss. If there is an auxiliary head, its loss is added, and both losses are also returned."""
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
        """Returns mIoU, mAcc and aAcc (percent) on the validation scenes."""
        return evaluate_segmentation(
            model,
            self.watched,
            self.config.preprocessing,
            EvaluationConfig(num_workers=self.config.run.num_workers),
            layout=layout,
            reduce=reduce,
        ).figures()
