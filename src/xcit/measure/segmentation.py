"""Measures a segmenter on labelled scenes."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from xcit.data.segmentation import open_scenes
from xcit.errors import XCiTError
from xcit.inference.segment import SlidingWindow
from xcit.measure.loading import load_for
from xcit.measure.result import Measuring, TestResult, write_confusion, write_table
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.segmentation import SegmentationConfig, SegmentationReport, evaluate_segmentation
from xcit.zoo.kinds import SEGMENTER
from xcit.zoo.sentence import model_sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationResult(TestResult):
    """The result of measuring a segmenter.

    Attributes:
        report: the figures and the confusion matrix.
        model: a description of the model.
        class_names: the class names, in the order of the confusion matrix.
        recipe: the recipe that was used.
        window: the sliding window; None if each image was segmented as a whole.
        full_size: whether the images kept their own size.
    """

    report: SegmentationReport
    model: str
    class_names: tuple[str, ...]
    recipe: SegmentationConfig
    window: SlidingWindow | None
    full_size: bool = False

    def lines(self) -> list[str]:
        return [f"{name:6s} {value:.2f}%" for name, value in self.report.figures().items()]

    def content(self) -> dict[str, Any]:
        return {
            "preprocessing": dataclasses.asdict(self.recipe.preprocessing),
            "window": None if self.window is None else dataclasses.asdict(self.window),
            "full_size": self.full_size,
            **self.report.figures(),
        }

    def write_tables(self, folder: Path) -> list[Path]:
        """Writes iou.csv (one row per class) and confusion.csv (one row per true class)."""
        report, names = self.report, self.class_names
        iou = [(name, f"{value:.2f}") for name, value in zip(names, report.iou, strict=True)]
        return [
            write_table(folder / "iou.csv", ["class", "IoU"], iou),
            write_confusion(folder / "confusion.csv", names, report.confusion),
        ]


def measure_segmenter(
    recipe: SegmentationConfig,
    checkpoint: str | os.PathLike[str],
    data: str,
    how: Measuring,
    *,
    window: SlidingWindow | None,
) -> SegmentationResult:
    """Measures a segmenter; see `xcit.test`."""
    scenes = open_scenes(data, "val", ignore_exif=recipe.ignore_exif).ignoring(recipe.ignore_index)
    for line in (scenes.describe(), *scenes.problems):
        how.announce(line)
    model = load_for(recipe, checkpoint, SEGMENTER)
    known = () if model.info is None else model.info.class_names
    if model.num_classes != len(scenes.class_names) or (known and known != scenes.class_names):
        raise XCiTError(
            f"{data} has {len(scenes.class_names)} classes ({scenes.class_names[0]}, ...), and the model has "
            f"{model.num_classes}{f' ({known[0]}, ...)' if known else ''}: "
            "the classes must be the same, in the same order"
        )
    how.started(len(scenes))
    result = evaluate_segmentation(
        model.fuse().to(how.device, how.dtype),
        scenes,
        recipe.preprocessing,
        EvaluationConfig(num_workers=how.num_workers, dtype=how.dtype),
        window=window,
        full_size=how.full_size,
        report=how.report,
    )
    return SegmentationResult(
        report=result,
        model=model_sentence(model, checkpoint),
        class_names=scenes.class_names,
        recipe=recipe,
        window=window,
        full_size=how.full_size is not None,
    )
