"""A detector measured on annotated images by its recipe: what `xcit test` does for detection."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from xcit.data.coco import open_coco
from xcit.inference import default_device
from xcit.tasks.average_precision import NAMES
from xcit.tasks.detection import DetectionConfig, DetectionReport, evaluate_detection, load_for


@dataclass(frozen=True, kw_only=True)
class DetectionTestResult:
    """A report, and a line a kind of entry of the data that is not as it should be."""

    report: DetectionReport
    problems: tuple[str, ...]


def test_detections(
    recipe: DetectionConfig,
    checkpoint: str | os.PathLike[str],
    data: str,
    *,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    started: Callable[[int], None] = lambda _: None,
    report: Callable[[int], None] = lambda _: None,
) -> DetectionTestResult:
    """Measures a checkpoint on annotated images, each on its own, in float32, as the published figures were measured.

    Args:
        recipe: the config of a recipe or run.
        checkpoint: a path, a URL or a name of the zoo.
        data: a folder or file, see `open_coco`.
        num_workers: processes that read images.
        device: where to compute; none is a GPU if there is one, else the CPU.
        started: called once with the number of images.
        report: called with 1 after each image.

    Raises:
        XCiTError: if data or checkpoint can't be had, do not fit the recipe, or the model lacks a class of the data.
    """
    images = open_coco(data, "val")
    model = load_for(recipe, checkpoint)
    started(len(images))
    place = torch.device(device) if device is not None else default_device()
    found = evaluate_detection(model.fuse().to(place), images, num_workers=num_workers, report=report)
    return DetectionTestResult(report=found, problems=images.problems)


def write_detection_report(
    result: DetectionTestResult, folder: Path, *, config: str, checkpoint: str, data: str
) -> list[Path]:
    """Writes report.json; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    report = result.report
    content = {
        "config": config,
        "checkpoint": checkpoint,
        "data": data,
        "num_images": report.num_images,
        **{
            kind: {name: None if math.isnan(value) else value for name, value in zip(NAMES, values, strict=True)}
            for kind, values in (("box", report.precision.boxes), ("mask", report.precision.masks))
        },
        "unreadable": list(report.unreadable),
        "problems": list(result.problems),
    }
    path = folder / "report.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [path]
