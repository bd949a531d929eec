"""Measures a detector on annotated images."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from xcit.data.coco import open_coco
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.measure.loading import load_for
from xcit.measure.result import Measuring, TestResult
from xcit.training.tasks.average_precision import DESCRIPTIONS, NAMES
from xcit.training.tasks.detection import DetectionConfig, DetectionReport, evaluate_detection
from xcit.zoo.kinds import DETECTOR
from xcit.zoo.sentence import model_sentence


@dataclass(frozen=True, kw_only=True)
class DetectionResult(TestResult):
    """The result of measuring a detector.

    Attributes:
        report: the average precisions.
        model: a description of the model.
        data_problems: one line for each kind of problem in the data.
        full_size: whether the images kept their own size.
    """

    report: DetectionReport
    model: str
    data_problems: tuple[str, ...]
    full_size: bool = False

    @property
    def problems(self) -> tuple[str, ...]:
        return (*self.data_problems, *super().problems)

    def lines(self) -> list[str]:
        """Returns COCO's twelve figures for boxes and for masks, in the format of pycocotools."""
        precision = self.report.precision
        return [
            line
            for kind, values in (("boxes", precision.boxes), ("masks", precision.masks))
            for line in (
                kind,
                *(f" {text} = {value / 100:.3f}" for text, value in zip(DESCRIPTIONS, values, strict=True)),
            )
        ]

    def content(self) -> dict[str, Any]:
        precision = self.report.precision
        return {
            **{
                kind: {name: None if math.isnan(value) else value for name, value in zip(NAMES, values, strict=True)}
                for kind, values in (("box", precision.boxes), ("mask", precision.masks))
            },
            "full_size": self.full_size,
            "problems": list(self.data_problems),
        }


def measure_detector(
    recipe: DetectionConfig, checkpoint: str | os.PathLike[str], data: str, how: Measuring
) -> DetectionResult:
    """Measures a detector on the validation images, one image at a time; see `xcit.test`.

    Images are resized to the recipe's sides; with `how.full_size`, they keep their own size.
    """
    if how.dtype != torch.float32:
        raise XCiTError(f"{recipe.name}: a detector is measured only in float32, not in {how.dtype}")
    need_packages("average precision", "faster_coco_eval")
    images = open_coco(data, "val", ignore_exif=recipe.ignore_exif)
    how.announce(images.describe())
    model = load_for(recipe, checkpoint, DETECTOR)
    prepared = {
        name: getattr(recipe.model, name) for name in ("short_side", "long_side", "mean", "std", "anchor_scale")
    }
    model.config = replace(model.config, **prepared)
    how.started(len(images))
    found = evaluate_detection(
        model.fuse().to(how.device),
        images,
        num_workers=how.num_workers,
        full_size=how.full_size,
        report=how.report,
    )
    return DetectionResult(
        report=found,
        model=model_sentence(model, checkpoint),
        data_problems=images.problems,
        full_size=how.full_size is not None,
    )
