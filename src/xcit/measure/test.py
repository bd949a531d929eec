"""A trained model measured on a data set by its recipe: what `xcit test` does."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xcit.data.classification import is_folder_without_validation
from xcit.errors import XCiTError
from xcit.inference.reading import default_device
from xcit.inference.segment import SlidingWindow
from xcit.machine import find_device
from xcit.measure.classification import measure_classifier
from xcit.measure.detection import measure_detector
from xcit.measure.multi_label import measure_multi_label
from xcit.measure.result import Measuring, TestResult
from xcit.measure.segmentation import measure_segmenter
from xcit.training.recipes import get_recipe
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.detection import DetectionConfig
from xcit.training.tasks.multi_label import MultiLabelConfig
from xcit.training.tasks.segmentation import SegmentationConfig
from xcit.zoo.changes import Changes
from xcit.zoo.records import Protocol

__all__ = ["TestResult", "test"]


def test(
    config: str,
    checkpoint: str | os.PathLike[str],
    data: str,
    *,
    protocol: Protocol | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: int | None = None,
    stem_strides: Sequence[int] | None = None,
    window: SlidingWindow | None = None,
    holdout: float | None = None,
    ignore_index: int | None = None,
    ignore_exif: bool = False,
    batch_size: int = 64,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    started: Callable[[int], None] = lambda _: None,
    report: Callable[[int], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> TestResult:
    """Measures a checkpoint on labelled data, as a recipe prepares them.

    Args:
        config: a recipe's name, or the path of an mmpretrain config of that name, or a run's YAML file.
        checkpoint: a path, a URL or a name of the zoo; a path may have a key after it (see `get_model`).
        data: a folder or a known name: of images by class (see `open_labelled_images`), with lists of classes
            (`open_multi_label`), of scenes with label maps (`open_scenes`) or of annotated images (`open_coco`), as the
            recipe's task has it.
        protocol: of classification: prepare images by this published protocol instead of the recipe's (mmpretrain's).
        mean: of the channels, of pixels in 0..1, in place of the model's or the recipe's; one number is for all.
        std: likewise.
        size: pixels a side of a classifier's input, or of the short side of an image, in place of the recipe's.
        stem_strides: of the model, in place of the recipe's (see `XCiTConfig`).
        window: of segmentation: how to go over an image; none takes it whole, as the published figures were measured.
        holdout: of classification: measure the images that a run with this `holdout` on these data was watched by, a
            number or a share of them; none takes a run's own where `config` is that run's and `data` its data.
        ignore_index: of segmentation: a label whose pixels do not count, in place of the recipe's.
        ignore_exif: of segmentation and detection: label maps and boxes were drawn on the pixels as they are stored,
            not as a viewer turns them; also where the recipe does not say so.
        batch_size: of classification: images a forward pass. Segmenters and detectors take one at a time.
        num_workers: processes that read images.
        device: where to compute; none is a GPU if there is one, else the CPU.
        dtype: float32, or bfloat16 or float16: for autocast of a classifier, for a segmenter's weights too; detectors
            are measured in float32 alone.
        started: called once with the number of images.
        report: called with the number of images of each batch.
        announce: called with lines for people: which classes were found, and what is not as it should be.

    Returns:
        What was measured, by task: its `report` is a `ClassificationReport`, `MultiLabelReport`, `SegmentationReport`
        or `DetectionReport`.

    Raises:
        XCiTError: before anything is loaded or downloaded if recipe, data or what is asked for are wrong; then if the
            checkpoint can't be had, does not fit the recipe, or has other classes than the data.
    """
    recipe = get_recipe(config)
    if stem_strides is not None:
        recipe = replace(recipe, model=Changes(stem_strides=stem_strides).of(recipe.model))
    for given, kinds, reason in (
        (protocol, ClassificationConfig, "trains no classifier: the published protocols do not apply to it"),
        (window, SegmentationConfig, "trains no segmenter: no window goes over its images"),
        (holdout, ClassificationConfig, "trains no classifier of one class an image: nothing is held out"),
        (ignore_index, SegmentationConfig, "trains no segmenter: there are no labels to ignore"),
        (
            ignore_exif or None,
            SegmentationConfig | DetectionConfig,
            "has no label maps or boxes that were drawn on stored pixels",
        ),
    ):
        if given is not None and not isinstance(recipe, kinds):
            raise XCiTError(f"{recipe.name} {reason}")
    if isinstance(recipe, SegmentationConfig | DetectionConfig):
        recipe = replace(recipe, ignore_exif=recipe.ignore_exif or ignore_exif)
    place = find_device(device) if device is not None else default_device()
    how = Measuring(
        num_workers=num_workers, device=place, dtype=dtype, started=started, report=report, announce=announce
    )
    if isinstance(recipe, ClassificationConfig):
        return measure_classifier(
            recipe,
            checkpoint,
            data,
            how,
            protocol=protocol,
            prepared=lambda spec: spec.changed(mean=mean, std=std, size=size),
            batch_size=batch_size,
            holdout=_own_holdout(recipe, data) if holdout is None else holdout,
        )
    if isinstance(recipe, MultiLabelConfig):
        recipe = replace(recipe, preprocessing=recipe.preprocessing.changed(mean=mean, std=std, size=size))
        return measure_multi_label(recipe, checkpoint, data, how, batch_size=batch_size)
    if isinstance(recipe, SegmentationConfig):
        recipe = replace(
            recipe,
            preprocessing=recipe.preprocessing.changed(mean=mean, std=std, size=size),
            ignore_index=recipe.ignore_index if ignore_index is None else ignore_index,
        )
        return measure_segmenter(recipe, checkpoint, data, how, window=window)
    if isinstance(recipe, DetectionConfig):
        recipe = replace(recipe, model=recipe.model.prepared(mean=mean, std=std, size=size))
        return measure_detector(recipe, checkpoint, data, how)
    raise XCiTError(
        f"{recipe.name} trains no classifier, no segmenter and no detector; features are measured by `xcit knn` and "
        "`xcit linear`"
    )


def _own_holdout(recipe: ClassificationConfig, data: str) -> float:
    """What a run held out of a folder, where the config is the run's and the folder the one it was trained on."""
    if not recipe.holdout or not recipe.data or not is_folder_without_validation(data):
        return 0
    return recipe.holdout if Path(recipe.data).resolve() == Path(data).resolve() else 0
