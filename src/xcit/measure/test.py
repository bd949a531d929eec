"""Measures a trained model on a data set, with the settings of a recipe, for `xcit test`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xcit.data.classification import is_folder_without_validation
from xcit.errors import XCiTError
from xcit.inference.full_size import asked_full_size
from xcit.inference.reading import default_device
from xcit.inference.segment import SlidingWindow
from xcit.machine import find_device
from xcit.measure.classification import measure_classifier
from xcit.measure.detection import measure_detector
from xcit.measure.listening import listening
from xcit.measure.multi_label import measure_multi_label
from xcit.measure.result import Measuring, TestResult
from xcit.measure.segmentation import measure_segmenter
from xcit.streaming import Memory
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
    class_map: str | os.PathLike[str] | None = None,
    ignore_index: int | None = None,
    ignore_exif: bool = False,
    full_size: bool = False,
    memory: Memory = None,
    batch_size: int = 64,
    num_workers: int = 2,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    started: Callable[[int], None] | None = None,
    report: Callable[[int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> TestResult:
    """Measures a checkpoint on labelled data, with the preprocessing of a recipe.

    Args:
        config: a recipe's name, the path of an mmpretrain config with a recipe's name as its file name, or the YAML
            file of a training run.
        checkpoint: a path, a URL or a published name. A path can be followed by "#" and a key (see `get_model`).
        data: a folder or the name of a data set. Its content depends on the recipe's task: images by class (see
            `open_labelled_images`), images with lists of classes (`open_multi_label`), scenes with label maps
            (`open_scenes`) or annotated images (`open_coco`).
        protocol: for classification: the published protocol that determines the preprocessing; None means the recipe's
            preprocessing, which is mmpretrain's.
        mean: mean of each channel, for pixels in 0..1, or one number for all channels; None means the model's or the
            recipe's mean.
        std: standard deviation of each channel, in the same form as `mean`.
        size: side of a classifier's input, or short side of an image for other models, in pixels; None means the
            recipe's size.
        stem_strides: strides of the model's stem (see `XCiTConfig`); None means the recipe's strides.
        window: for segmentation: a window that slides over each image; None segments the image as a whole, as for the
            published figures.
        holdout: for classification: measure the images that a training run with this `holdout` did not train on. It
            is a number of images or, below 1, a fraction. None means the run's own value if `config` is the file of a
            run and `data` is its data.
        class_map: for classification: a file that maps class names in the data to the names, ids or indices of the
            model's classes (see `read_class_map`). None means the run's own class map if `config` is the file of a run
            and `data` is its data.
        ignore_index: for segmentation: the label of pixels that are not counted; None means the recipe's value.
        ignore_exif: for segmentation and detection: True if label maps and boxes refer to the stored pixels, before
            the rotation in the EXIF data. False means the recipe's value.
        full_size: for segmentation and detection: whether images keep their own size and are processed in stripes.
        memory: limit of the memory with `full_size`, in addition to the loaded model (see `xcit.streaming.Budget`).
        batch_size: for classification: images per forward pass. Segmenters and detectors get one image at a time.
        num_workers: number of processes that read images.
        device: where to compute; None means a GPU if there is one, else the CPU.
        dtype: float32, bfloat16 or float16. A classifier uses it for autocast, and a segmenter also for its weights.
            Detectors are measured only in float32.
        started: called once with the number of images.
        report: called with the number of images of each batch.
        announce: called with lines for the user, about the classes that were found and problems in the data. If
            `started`, `report` and `announce` are all None, the lines are printed to standard error. If standard error
            is a terminal, a progress bar is shown.

    Returns:
        The result. The class of its `report` depends on the task: `ClassificationReport`, `MultiLabelReport`,
        `SegmentationReport` or `DetectionReport`.

    Raises:
        XCiTError: if an argument does not fit the recipe, the data can't be opened, or the checkpoint can't be loaded,
            does not fit the recipe, or has other classes than the data.
    """
    recipe = get_recipe(config)
    if stem_strides is not None:
        recipe = replace(recipe, model=Changes(stem_strides=stem_strides).of(recipe.model))
    for given, kinds, reason in (
        (protocol, ClassificationConfig, "trains no classifier: the published protocols do not apply to it"),
        (window, SegmentationConfig, "trains no segmenter: a window does not apply"),
        (holdout, ClassificationConfig, "trains no classifier with one class per image: a holdout does not apply"),
        (class_map, ClassificationConfig, "trains no classifier with one class per image: a class map does not apply"),
        (ignore_index, SegmentationConfig, "trains no segmenter: a label to ignore does not apply"),
        (
            ignore_exif or None,
            SegmentationConfig | DetectionConfig,
            "trains no segmenter or detector: leave ignore_exif out",
        ),
        (
            full_size or None,
            SegmentationConfig | DetectionConfig,
            "trains no segmenter or detector: full size does not apply",
        ),
    ):
        if given is not None and not isinstance(recipe, kinds):
            raise XCiTError(f"{recipe.name} {reason}")
    if isinstance(recipe, SegmentationConfig | DetectionConfig):
        recipe = replace(recipe, ignore_exif=recipe.ignore_exif or ignore_exif)
    if full_size and window is not None:
        raise XCiTError("give either a window or full_size, not both")
    whole = asked_full_size(full_size, memory)
    place = find_device(device) if device is not None else default_device()
    with listening("test", started, report, announce) as listener:
        how = Measuring(
            num_workers=num_workers,
            device=place,
            dtype=dtype,
            started=listener.started,
            report=listener.report,
            announce=listener.announce,
            full_size=whole,
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
                class_map=_own_class_map(recipe, data) if class_map is None else os.fspath(class_map),
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
        f"{recipe.name} trains no classifier, no segmenter and no detector; measure features with `xcit knn` or "
        "`xcit linear`"
    )


def _own_holdout(recipe: ClassificationConfig, data: str) -> float:
    """Returns the holdout of the training run if `recipe` is the config of a run that used this folder, else 0."""
    if not recipe.holdout or not recipe.data or not is_folder_without_validation(data):
        return 0
    return recipe.holdout if Path(recipe.data).resolve() == Path(data).resolve() else 0


def _own_class_map(recipe: ClassificationConfig, data: str) -> str:
    """Returns the class map of the training run if `recipe` is the config of a run that used these data, else ""."""
    own = [Path(place).resolve() for place in (recipe.data, recipe.val_data) if place]
    return recipe.class_map if Path(data).resolve() in own else ""
