"""A segmenter measured on labelled scenes by its recipe: what `xcit test` does for segmentation."""

import csv
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from xcit.data.segmentation import open_scenes
from xcit.errors import XCiTError
from xcit.inference import default_device
from xcit.models import Segmenter
from xcit.segmenting import SlidingWindow
from xcit.tasks.segmentation import SegmentationConfig, SegmentationReport, evaluate_segmentation
from xcit.zoo import get_model
from xcit.zoo.load import is_file, load_segmenter_as


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneTestResult:
    """A report with the class names in the order of the confusion matrix, and what it was measured by."""

    report: SegmentationReport
    class_names: tuple[str, ...]
    recipe: SegmentationConfig
    window: SlidingWindow | None


def test_scenes(
    recipe: SegmentationConfig,
    checkpoint: str | os.PathLike[str],
    data: str,
    *,
    window: SlidingWindow | None = None,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    started: Callable[[int], None] = lambda _: None,
    report: Callable[[int], None] = lambda _: None,
) -> SceneTestResult:
    """Measures a checkpoint on labelled scenes, as a recipe prepares them.

    Args:
        recipe: the config of a recipe or run.
        checkpoint: a path, a URL or a name of the zoo.
        data: a folder, see `open_scenes`.
        window: how to go over an image; none takes it whole, as the published figures were measured.
        num_workers: processes that read scenes.
        device: where to compute; none is a GPU if there is one, else the CPU.
        dtype: of weights and computation.
        started: called once with the number of scenes.
        report: called with 1 after each scene.

    Raises:
        XCiTError: if data or checkpoint can't be had, do not fit the recipe, or have other classes than one another.
    """
    scenes = open_scenes(data, "val")
    model = _load(recipe, checkpoint)
    known = () if model.info is None else model.info.class_names
    if model.num_classes != len(scenes.class_names) or (known and known != scenes.class_names):
        raise XCiTError(
            f"{data} has {len(scenes.class_names)} classes ({scenes.class_names[0]}, ...), and the model "
            f"{model.num_classes}{f' ({known[0]}, ...)' if known else ''}: they must be the same, in the same order"
        )
    started(len(scenes))
    place = torch.device(device) if device is not None else default_device()
    result = evaluate_segmentation(
        model.fuse().to(place, dtype),
        scenes,
        recipe.preprocessing,
        window=window,
        num_workers=num_workers,
        dtype=dtype,
        report=report,
    )
    return SceneTestResult(report=result, class_names=scenes.class_names, recipe=recipe, window=window)


def _load(recipe: SegmentationConfig, checkpoint: str | os.PathLike[str]) -> Segmenter:
    name = os.fspath(checkpoint)
    if is_file(checkpoint) or "://" in name:
        return load_segmenter_as(recipe.model, name)
    model = get_model(name, pretrained=True)
    if not isinstance(model, Segmenter) or model.config.kind != recipe.model.kind:
        raise XCiTError(f"{name} is no {recipe.name}: its head is another")
    return model


def write_scene_report(result: SceneTestResult, folder: Path, *, config: str, checkpoint: str, data: str) -> list[Path]:
    """Writes report.json, iou.csv (a row a class) and confusion.csv (a row a true class); gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    report, names = result.report, result.class_names
    content = {
        "config": config,
        "checkpoint": checkpoint,
        "data": data,
        "preprocessing": dataclasses.asdict(result.recipe.preprocessing),
        "window": None if result.window is None else dataclasses.asdict(result.window),
        "num_images": report.num_images,
        **report.figures(),
        "unreadable": list(report.unreadable),
    }
    paths = [folder / name for name in ("report.json", "iou.csv", "confusion.csv")]
    paths[0].write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path, head, rows in (
        (paths[1], ["class", "IoU"], [(name, f"{iou:.2f}") for name, iou in zip(names, report.iou, strict=True)]),
        (
            paths[2],
            ["true \\ predicted", *names],
            [(name, *counts) for name, counts in zip(names, report.confusion.tolist(), strict=True)],
        ),
    ):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(head)
            table.writerows(rows)
    return paths
