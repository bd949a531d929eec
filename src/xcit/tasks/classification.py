"""Image classification: the loss, the figures, and the wiring of the data."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.data.classification import LabelledImages, Subset, open_labelled_images
from xcit.data.loader import AugmentationConfig, TrainLoader, evaluation_batches, train_transform
from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.errors import XCiTError
from xcit.models import ModelInfo, Preprocessing, XCiT, XCiTConfig
from xcit.zoo import save_model


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """A whole classification run.

    `holdout` images are taken off the training split to watch a run by; 0 watches the validation split. `data` is a
    folder or a known name (see `open_labelled_images`).
    """

    name: str
    model: XCiTConfig
    preprocessing: Preprocessing
    data: str = ""
    holdout: int = 0
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class ClassificationReport:
    """Figures of a model on labelled images.

    Attributes:
        num_images: images that were measured.
        top1: percent of them whose first class is right.
        top5: percent of them with the right class among the first five.
        loss: mean cross-entropy, natural logarithm.
        confusion: (num_classes, num_classes) counts, a row a true class, a column a predicted one.
        unreadable: one line for each image that could not be read, and so was not measured.
    """

    num_images: int
    top1: float
    top5: float
    loss: float
    confusion: Tensor
    unreadable: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """The scalars, by name."""
        return {"top1": self.top1, "top5": self.top5, "val_loss": self.loss}


def evaluate_classification(
    model: nn.Module,
    images: LabelledImages,
    spec: Preprocessing,
    *,
    num_classes: int,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    report: Callable[[int], None] = lambda _: None,
) -> ClassificationReport:
    """Measures a classifier on labelled images, each counted once.

    Args:
        model: gives logits (B, num_classes); it is put in evaluation mode for the time.
        images: what to measure on; their labels index the logits.
        spec: how an image becomes the model's input.
        num_classes: of the model.
        batch_size: images a forward pass.
        num_workers: processes that read images; 0 reads them in this one.
        device: where the model is; none asks its parameters.
        dtype: float32, or bfloat16 or float16 for autocast.
        report: called with the number of images of each batch.

    Raises:
        XCiTError: if not one image could be read.
    """
    device = device or next(model.parameters()).device
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    num_right5, loss_sum, unreadable = 0, 0.0, []
    was_training = model.training
    model.eval()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
    with torch.inference_mode():
        for batch, labels, reasons in evaluation_batches(images, spec, batch_size=batch_size, num_workers=num_workers):
            unreadable += reasons
            if len(labels):
                with autocast:
                    logits = model(batch.to(device))
                logits = logits.float().cpu()
                loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
                ranked = logits.topk(min(5, num_classes), dim=-1).indices
                num_right5 += int((ranked == labels[:, None]).sum())
                confusion += torch.bincount(labels * num_classes + ranked[:, 0], minlength=num_classes**2).reshape(
                    num_classes, num_classes
                )
            report(len(labels) + len(reasons))
    model.train(was_training)
    num_images = int(confusion.sum())
    if num_images == 0:
        raise XCiTError(f"none of the {len(images)} images could be read; the first: {unreadable[0]}")
    return ClassificationReport(
        num_images=num_images,
        top1=100 * int(confusion.diagonal().sum()) / num_images,
        top5=100 * num_right5 / num_images,
        loss=loss_sum / num_images,
        confusion=confusion,
        unreadable=tuple(unreadable),
    )


class ClassificationTask:
    """Wires a config's data, augmentation and loss to the engine.

    Raises:
        XCiTError: if the data are missing, or have other classes than the model.
    """

    def __init__(self, config: ClassificationConfig) -> None:
        if not config.data:
            raise XCiTError(f"{config.name} has no data of its own: give a folder of images by class with --data")
        train = open_labelled_images(config.data, "train")
        if not 0 <= config.holdout < len(train):
            raise XCiTError(
                f"holdout is {config.holdout}, must be from 0 to fewer than the {len(train)} images there are"
            )
        if config.holdout:
            # A fixed draw, whatever the seed of the run, so that runs can be compared.
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
            watched: LabelledImages = Subset(train, order[: config.holdout])
            train = Subset(train, order[config.holdout :])
        else:
            watched = open_labelled_images(config.data, "val")
        num_classes = len(train.class_ids)
        if watched.class_ids != train.class_ids:
            raise XCiTError(f"{config.data}: the training and the validation images have different classes")
        if num_classes != config.model.num_classes:
            raise XCiTError(
                f"{config.data} has {num_classes} classes, the model {config.model.num_classes}: "
                f"set model.num_classes to {num_classes}"
            )
        self.config, self.watched = config, watched
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = XCiT(config.model)
        self.info = ModelInfo(name=config.name, preprocessing=config.preprocessing, class_names=train.class_ids)
        self._loader = TrainLoader(
            train,
            train_transform(config.augmentation, config.preprocessing),
            batch_size=config.run.batch_size,
            seed=config.run.seed,
            num_workers=config.run.num_workers,
        )
        self._mixing = _mixing(config.augmentation, num_classes)

    def train_batches(self, epoch: int) -> TrainLoader:
        """Batches (images (B, C, h, w), labels (B,)) of an epoch."""
        return self._loader.epoch(epoch)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy against the mixed or smoothed labels."""
        images, labels = batch
        if self._mixing is not None:
            images, targets = self._mixing(images, labels)
            return {"loss": F.cross_entropy(model(images), targets)}
        smoothing = self.config.augmentation.label_smoothing
        return {"loss": F.cross_entropy(model(images), labels, label_smoothing=smoothing)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Top-1, top-5 and loss on the images the run is watched by."""
        report = evaluate_classification(
            model,
            self.watched,
            self.config.preprocessing,
            num_classes=self.config.model.num_classes,
            batch_size=500,
            num_workers=self.config.run.num_workers,
        )
        return report.figures()

    def export(self, model: nn.Module, path: Path, figures: dict[str, float]) -> None:
        """Weights, shape, class names and preprocessing in one safetensors file."""
        exported = XCiT(replace(self.config.model, drop_path_rate=0.0))
        exported.load_state_dict(model.state_dict())
        exported.info = self.info
        save_model(exported, path)


def _mixing(config: AugmentationConfig, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    if not (config.mixup or config.cutmix):
        return None
    from timm.data import Mixup

    mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
    return mixing
