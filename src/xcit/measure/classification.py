"""Measures a classifier on labelled images."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from xcit.data.classification import (
    LabelledImages,
    describe_classes,
    is_folder_without_validation,
    problems_of,
    with_classes,
)
from xcit.data.splits import is_number
from xcit.draw.confusion import draw_confusion
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.measure.loading import load_for
from xcit.measure.result import Measuring, TestResult, write_confusion
from xcit.models import XCiT
from xcit.training.tasks.base import EvaluationConfig
from xcit.training.tasks.classification import ClassificationConfig, ClassificationReport, evaluate_classification
from xcit.training.tasks.labelled_data import open_measured
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.records import Protocol


@dataclass(frozen=True, kw_only=True)
class ClassificationResult(TestResult):
    """A report, the class names in the order of its confusion matrix, and the preprocessing that was used."""

    report: ClassificationReport
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    def lines(self) -> list[str]:
        report = self.report
        return [f"top-1  {report.top1:.2f}%", f"top-5  {report.top5:.2f}%", f"loss   {report.loss:.4f}"]

    def content(self) -> dict[str, Any]:
        report = self.report
        return {
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "top1": report.top1,
            "top5": report.top5,
            "loss": report.loss,
        }

    def write_tables(self, folder: Path) -> list[Path]:
        """Writes confusion.csv (a row is a true class) and, if matplotlib is installed, confusion.png."""
        report, names = self.report, self.class_names
        paths = [write_confusion(folder / "confusion.csv", names, report.confusion)]
        if find_spec("matplotlib") is not None:
            paths.append(folder / "confusion.png")
            title = f"top-1 {report.top1:.2f}% of {report.num_images:,} images"
            draw_confusion(report.confusion.numpy(), names, title, paths[-1])
        return paths


def measure_classifier(
    recipe: ClassificationConfig,
    checkpoint: str | os.PathLike[str],
    data: str,
    how: Measuring,
    *,
    protocol: Protocol | None,
    prepared: Callable[[Preprocessing], Preprocessing],
    batch_size: int,
    holdout: float,
) -> ClassificationResult:
    """See `xcit.test`. `prepared` changes the preprocessing last."""
    spec = _preprocessing(recipe, protocol)
    images = open_measured(data, holdout)
    model = load_for(recipe, checkpoint, CLASSIFIER)
    if model.info is not None and not model.info.assumed:
        # The size is the protocol's, but the normalisation belongs to the weights: robust models have none.
        own = model.info.preprocessing
        spec = dataclasses.replace(spec, mean=own.mean, std=own.std)
    spec = prepared(spec)
    if not model.num_classes:
        raise XCiTError(
            f"{os.fspath(checkpoint)} has no classifier: its features are measured by xcit knn or xcit linear"
        )
    class_ids, class_names = _classes(model)
    found = (describe_classes(images), *problems_of(images), *_flattered(data, holdout))
    images, order = _with_labels_of(images, class_ids or class_names, model.num_classes, data)
    for line in (*found, order) if order else found:
        how.announce(line)
    how.started(len(images))
    # A model is fused only for float32: autocast keeps the sum of the residual branches in float32, and a fused copy in
    # 16 bits would not.
    network = model.fuse() if how.dtype == torch.float32 else model
    result = evaluate_classification(
        network.to(how.device),
        images,
        spec,
        EvaluationConfig(batch_size=batch_size, num_workers=how.num_workers, dtype=how.dtype),
        num_classes=model.num_classes,
        report=how.report,
    )
    return ClassificationResult(report=result, class_names=class_names or images.class_ids, preprocessing=spec)


def _flattered(data: str, holdout: float) -> tuple[str, ...]:
    """Warns if images are measured that a run on the same folder was trained on."""
    if holdout:
        return (f"these images are held out of the training images of {data}: --holdout {holdout:g}",)
    if not is_folder_without_validation(data):
        return ()
    return (
        f"warning: {data} has no folder val: all its images are measured, also those that a run on it was trained on; "
        "--holdout, as in that run, measures those it was not",
    )


def _preprocessing(recipe: ClassificationConfig, protocol: Protocol | None) -> Preprocessing:
    if protocol is None:
        return recipe.preprocessing
    if recipe.model.num_classes != 1000:
        raise XCiTError(f"{recipe.name} is no ImageNet recipe: the published protocols do not apply to it")
    return published_preprocessing(protocol, recipe.preprocessing.image_size)


def _classes(model: XCiT) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns folder names and names of a model's classes. 1000 classes without names are taken to be ImageNet's."""
    if model.info is not None:
        return model.info.class_ids, model.info.class_names
    if model.num_classes == 1000:
        return imagenet_class_ids(), imagenet_class_names()
    return (), ()


def _with_labels_of(
    images: LabelledImages, model_classes: tuple[str, ...], num_classes: int, data: str
) -> tuple[LabelledImages, str]:
    """Matches folders with the model's classes, by name or number, so that a subset of ImageNet is measured correctly.

    Returns:
        The images, and a line for the user if the classes can only be matched by their order.
    """
    names = images.class_ids
    if names == model_classes:
        return images, ""
    index_of = {name: index for index, name in enumerate(model_classes)}
    if all(name in index_of for name in names):
        return with_classes(images, model_classes, [index_of[name] for name in names]), ""
    if all(is_number(name) and int(name) < num_classes for name in names):
        numbers = [int(name) for name in names]
        classes = model_classes or tuple(map(str, range(num_classes)))
        line = f"{data}: its classes are numbers: the model's, from 0" + (
            f"; {names[0]} is {classes[numbers[0]]!r}" if model_classes else ""
        )
        return with_classes(images, classes, numbers), line
    if not model_classes and len(names) == num_classes:
        shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(names[:3]))
        return images, f"the weights do not name their classes: they are taken in the folders' order, {shown}, ..."
    unknown = [name for name in names if name not in index_of]
    raise XCiTError(
        f"{data} has {len(names)} classes, and the model's {num_classes} do not include "
        f"{', '.join(map(repr, unknown[:3]))}{', ...' if len(unknown) > 3 else ''}"
    )
