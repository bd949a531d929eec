"""Measures a multi-label classifier on images with several classes each."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from xcit.data.classification import describe_classes
from xcit.data.multi_label import open_multi_label
from xcit.errors import XCiTError
from xcit.measure.loading import fused_for, load_for
from xcit.measure.result import Measuring, TestResult, write_table
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.multi_label import MultiLabelConfig, MultiLabelReport, evaluate_multi_label
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.sentence import model_sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabelResult(TestResult):
    """The result of measuring a multi-label classifier.

    Attributes:
        report: the figures.
        model: a description of the model.
        class_names: the class names, in the order of the logits.
        recipe: the recipe that was used.
    """

    report: MultiLabelReport
    model: str
    class_names: tuple[str, ...]
    recipe: MultiLabelConfig

    def lines(self) -> list[str]:
        return [f"mAP    {self.report.mean_average_precision:.2f}%", f"loss   {self.report.loss:.4f}"]

    def content(self) -> dict[str, Any]:
        return {"preprocessing": dataclasses.asdict(self.recipe.preprocessing), **self.report.figures()}

    def write_tables(self, folder: Path) -> list[Path]:
        """Writes average_precision.csv, with one row per class."""
        rows = [
            (name, f"{value:.2f}") for name, value in zip(self.class_names, self.report.average_precision, strict=True)
        ]
        return [write_table(folder / "average_precision.csv", ["class", "AP"], rows)]


def measure_multi_label(
    recipe: MultiLabelConfig, checkpoint: str | os.PathLike[str], data: str, how: Measuring, *, batch_size: int
) -> MultiLabelResult:
    """Measures a multi-label classifier; see `xcit.test`."""
    model = load_for(recipe, checkpoint, CLASSIFIER)
    if not model.num_classes:
        raise XCiTError(f"{os.fspath(checkpoint)} has no classifier")
    known = () if model.info is None else model.info.class_names
    images = open_multi_label(data, "val", class_ids=known)
    if len(images.class_ids) != model.num_classes:
        raise XCiTError(
            f"{data} has {len(images.class_ids)} classes, but the model has {model.num_classes} classes without names"
        )
    how.announce(describe_classes(images))
    how.started(len(images))
    report = evaluate_multi_label(
        fused_for(model, how),
        images,
        images.targets,
        recipe.preprocessing,
        EvaluationConfig(batch_size=batch_size, num_workers=how.num_workers, dtype=how.dtype),
        report=how.report,
    )
    return MultiLabelResult(
        report=report, model=model_sentence(model, checkpoint), class_names=images.class_ids, recipe=recipe
    )
