"""Measures a classifier on labelled images."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xcit.data.classification import (
    LabelledImages,
    describe_classes,
    is_folder_without_validation,
    problems_of,
    with_classes,
)
from xcit.data.splits import is_number
from xcit.draw.confusion import draw_confusion
from xcit.errors import XCiTError, some_of
from xcit.images.preprocess import Preprocessing, published_preprocessing
from xcit.measure.loading import fused_for, load_for
from xcit.measure.result import Measuring, TestResult, write_confusion
from xcit.models import XCiT
from xcit.training.tasks.classification import ClassificationConfig, ClassificationReport, evaluate_classification
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.labelled_data import open_measured
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.records import Protocol
from xcit.zoo.sentence import model_sentence


@dataclass(frozen=True, kw_only=True)
class ClassificationResult(TestResult):
    """The result of measuring a classifier.

    Attributes:
        report: the figures and the confusion matrix.
        model: a description of the model.
        class_names: the class names, in the order of the confusion matrix.
        preprocessing: the preprocessing that was used.
    """

    report: ClassificationReport
    model: str
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
        """Writes confusion.csv (one row per true class) and, if matplotlib is installed, confusion.png."""
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
    class_map: str,
) -> ClassificationResult:
    """Measures a classifier; see `xcit.test`. `prepared` applies the user's changes to a preprocessing."""
    spec = _preprocessing(recipe, protocol)
    images = open_measured(data, holdout, class_map)
    model = load_for(recipe, checkpoint, CLASSIFIER)
    if model.info is not None and not model.info.assumed:
        # The protocol determines the size, but the weights determine the mean and standard deviation: for example, the
        # robust models were trained without normalisation.
        own = model.info.preprocessing
        spec = dataclasses.replace(spec, mean=own.mean, std=own.std)
    spec = prepared(spec)
    if not model.num_classes:
        raise XCiTError(f"{os.fspath(checkpoint)} has no classifier: measure its features with xcit knn or xcit linear")
    class_ids, class_names = _classes(model)
    found = (describe_classes(images), *problems_of(images), *_flattered(data, holdout))
    images, order = _with_labels_of(
        images, (class_ids, class_names), model.num_classes, data, is_mapped=bool(class_map)
    )
    for line in filter(None, (*found, order)):
        how.announce(line)
    how.started(len(images))
    result = evaluate_classification(
        fused_for(model, how),
        images,
        spec,
        EvaluationConfig(batch_size=batch_size, num_workers=how.num_workers, dtype=how.dtype),
        num_classes=model.num_classes,
        report=how.report,
    )
    return ClassificationResult(
        report=result,
        model=model_sentence(model, checkpoint),
        class_names=class_names or images.class_ids,
        preprocessing=spec,
    )


def _flattered(data: str, holdout: float) -> tuple[str, ...]:
    """Returns at most one line: a note about held-out images, or a warning that training images may be measured."""
    if holdout:
        return (f"these images are held out of the training images of {data}: holdout {holdout:g}",)
    if not is_folder_without_validation(data):
        return ()
    return (
        f"warning: {data} has no folder val: all its images are measured, and the model may have been trained on them; "
        "to measure only images that the model was not trained on, give the holdout of its training run",
    )


def _preprocessing(recipe: ClassificationConfig, protocol: Protocol | None) -> Preprocessing:
    if protocol is None:
        return recipe.preprocessing
    if recipe.model.num_classes != 1000:
        raise XCiTError(f"{recipe.name} is not an ImageNet recipe: the published protocols do not apply to it")
    return published_preprocessing(protocol, recipe.preprocessing.image_size)


def _classes(model: XCiT) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the ids (folder names) and the names of a model's classes.

    If the model has 1000 classes but no info, the classes of ImageNet are returned.
    """
    if model.info is not None:
        return model.info.class_ids, model.info.class_names
    if model.num_classes == 1000:
        return imagenet_class_ids(), imagenet_class_names()
    return (), ()


def _with_labels_of(
    images: LabelledImages,
    model_classes: tuple[tuple[str, ...], tuple[str, ...]],
    num_classes: int,
    data: str,
    *,
    is_mapped: bool,
) -> tuple[LabelledImages, str]:
    """Relabels images with the model's class indices, even if the data have only some of the model's classes.

    Each class name in the data is matched with the id, name or index of one of the model's classes. A number in a class
    map is always used as an index. A folder name that is a number is used as an index only if all folder names are
    numbers, because otherwise the number may mean something else.

    Args:
        images: the images with the classes of the data.
        model_classes: ids and names of the model's classes, each empty if not known.
        num_classes: number of the model's classes.
        data: the name of the data, for messages.
        is_mapped: whether the class names come from a class map.

    Returns:
        The images, and a line for the user if classes were matched by index or order; else "".

    Raises:
        XCiTError: if a class of the data matches no class or several classes of the model.
    """
    names, own_ids = images.class_ids, model_classes[0] or model_classes[1]
    if names == own_ids:
        return images, ""
    places = {name: _places(name, model_classes, num_classes) for name in names}
    are_numbers = [_is_number_of(name, model_classes) for name in names]
    if not is_mapped and any(are_numbers) and not all(are_numbers):
        places |= {name: [] for name, is_one in zip(names, are_numbers, strict=True) if is_one}
    if all(len(found) == 1 for found in places.values()):
        labels = [found[0] for found in places.values()]
        line = ""
        if any(are_numbers):
            first = are_numbers.index(True)
            shown = f"; {names[first]} is {own_ids[labels[first]]!r}" if own_ids else ""
            line = f"{data}: its class names are used as indices of the model's classes{shown}"
        return with_classes(images, own_ids or tuple(map(str, range(num_classes))), labels), line
    if not own_ids and len(names) == num_classes:
        shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(names[:3]))
        return images, f"the weights contain no class names: classes are matched with folders in order, {shown}, ..."
    if twice := [name for name, found in places.items() if len(found) > 1]:
        raise XCiTError(
            f"{data}: {len(places[twice[0]])} of the model's classes are called {twice[0]!r}: "
            "choose one with a class map"
        )
    unknown = [name for name, found in places.items() if not found]
    raise XCiTError(
        f"{data} has {len(names)} classes, but the model's {num_classes} classes do not include "
        f"{some_of(map(repr, unknown))}; give a class map that maps them to the model's classes"
    )


def _places(name: str, model_classes: tuple[tuple[str, ...], tuple[str, ...]], num_classes: int) -> list[int]:
    """Returns the indices of the model's classes with this id, name or index; more than one if classes share a name."""
    for own in model_classes:
        if found := [index for index, one in enumerate(own) if one == name]:
            return found
    return [int(name)] if is_number(name) and int(name) < num_classes else []


def _is_number_of(name: str, model_classes: tuple[tuple[str, ...], tuple[str, ...]]) -> bool:
    """Returns whether a class name in the data is a number, but not the id or name of one of the model's classes."""
    return is_number(name) and not any(name in own for own in model_classes)
