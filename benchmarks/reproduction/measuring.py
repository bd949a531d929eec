"""Makes a measurement: computes the figures of a checkpoint on a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reproduction.plan import Measurement
from xcit.measure.classification import measure_classifier
from xcit.measure.detection import DetectionResult
from xcit.measure.knn import evaluate_knn
from xcit.measure.linear import train_linear
from xcit.measure.result import Measuring
from xcit.measure.segmentation import SegmentationResult
from xcit.measure.test import test
from xcit.training.tasks.classification import ClassificationConfig
from xcit.zoo import Checkpoint


@dataclass(frozen=True, kw_only=True)
class How:
    """The settings of a measurement.

    Attributes:
        device: device of the model.
        batch_size: images per forward pass.
        num_workers: processes that read images.
        probes: folder for the training runs of linear probes.
        started: called with the number of images.
        report: called with the number of images that were processed since the last call.
    """

    device: torch.device
    batch_size: int
    num_workers: int
    probes: Path
    started: Callable[[int], None] = lambda _: None
    report: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures in percent by metric, the number of measured images, and the number of images that could not be read."""

    figures: dict[str, float]
    num_images: int
    num_unreadable: int
    note: str = ""


def measure(measurement: Measurement, data: str, how: How) -> Measured:
    """Downloads the checkpoint, unless the cache has it, and measures it in float32.

    Raises:
        XCiTError: if the checkpoint can't be downloaded or is another model, or if the data can't be read.
    """
    kind = {"classifier": _classifier, "k-NN": _knn, "linear": _linear}.get(measurement.method, _dense)
    return kind(measurement, data, how)


def _classifier(measurement: Measurement, data: str, how: How) -> Measured:
    record, spec = measurement.record, measurement.spec
    assert isinstance(record, Checkpoint) and spec is not None
    # The config is built here, because robust models have no recipe. The recipes' preprocessing would be the same.
    config = ClassificationConfig(name=record.name, model=record.config, preprocessing=spec)
    result = measure_classifier(
        config,
        record.name,
        data,
        Measuring(
            num_workers=how.num_workers,
            device=how.device,
            dtype=torch.float32,
            started=how.started,
            report=how.report,
        ),
        protocol=None,
        prepared=lambda found: found,
        batch_size=how.batch_size,
        holdout=0,
        class_map="",
    )
    report = result.report
    figures = {"top-1": report.top1, "top-5": report.top5}
    return Measured(figures=figures, num_images=report.num_images, num_unreadable=len(report.unreadable))


def _knn(measurement: Measurement, data: str, how: How) -> Measured:
    report = evaluate_knn(
        measurement.record.name,
        data,
        batch_size=how.batch_size,
        num_workers=how.num_workers,
        device=how.device,
        started=how.started,
        report=how.report,
    )
    return Measured(
        figures={"top-1": report.best.top1},
        num_images=report.num_val,
        num_unreadable=len(report.unreadable),
        note=f"k {report.best.k}",
    )


def _linear(measurement: Measurement, data: str, how: How) -> Measured:
    report = train_linear(
        measurement.record.name,
        data,
        how.probes / measurement.record.name,
        resume=True,
        num_workers=how.num_workers,
        device=how.device,
    )
    return Measured(
        figures={"top-1": report.best.top1}, num_images=report.num_val, num_unreadable=len(report.unreadable)
    )


def _dense(measurement: Measurement, data: str, how: How) -> Measured:
    record = measurement.record
    result = test(
        record.recipe,
        record.name,
        data,
        num_workers=how.num_workers,
        device=how.device,
        started=how.started,
        report=how.report,
    )
    if isinstance(result, DetectionResult):
        precision = result.report.precision
        figures = {"box AP": precision.boxes[0], "mask AP": precision.masks[0]}
    else:
        assert isinstance(result, SegmentationResult)
        figures = {"mIoU": result.report.figures()["mIoU"]}
    report = result.report
    return Measured(figures=figures, num_images=report.num_images, num_unreadable=len(report.unreadable))
