"""Prepares images for int8 calibration, which measures the ranges of a model's activations."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from xcit.data.segmentation_transforms import normalized, target_size, to_pixels
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing, preprocess
from xcit.images.resize_8bit import resize_bilinear_8bit
from xcit.inference.detect import detector_pixels
from xcit.inference.reading import Readable, Unreadable, read_ahead
from xcit.zoo.kinds import DETECTOR, kind_of_config


def calibration_images(
    images: Iterable[Readable], model: Any, size: int | None = None
) -> Iterator[Tensor | Unreadable]:
    """Yields preprocessed images (1, C, h, w) for a model; an image that can't be read gives an `Unreadable`.

    Args:
        images: the images to read.
        model: a model of any kind.
        size: height and width in pixels of the exported file's input. A segmenter's images are resized to this size
            without keeping their aspect ratio. A detector's images keep their aspect ratio, and are resized to fit into
            this size. None means the size in the model's preprocessing, which a classifier always uses.

    Raises:
        XCiTError: if the model's preprocessing is not known.
    """
    spec = getattr(model.info, "preprocessing", None)
    if kind_of_config(model.config) is DETECTOR:
        prepare: Any = partial(_photo, model=model, sides=None if size is None else (size, size))
    elif isinstance(spec, Preprocessing):
        prepare = partial(preprocess, spec=spec)
    elif isinstance(spec, SegmentationPreprocessing):
        prepare = partial(_scene, spec=spec, size=size)
    else:
        raise XCiTError("it is not known how to prepare images for the model: give mean and std")
    for result in read_ahead(images, prepare, num_ahead=4):
        yield result if isinstance(result, Unreadable) else result[1][None]


def _photo(image: Image.Image, model: Any, sides: tuple[int, int] | None) -> Tensor:
    pixels = detector_pixels(np.asarray(image), model.config.backbone.in_channels)
    prepared: Tensor = model.prepare(pixels, sides)[0]
    return prepared


def _scene(image: Image.Image, spec: SegmentationPreprocessing, size: int | None) -> Tensor:
    pixels = to_pixels(image, spec)
    height_width = target_size(pixels, spec) if size is None else (size, size)
    return normalized(np.ascontiguousarray(resize_bilinear_8bit(pixels, height_width)), spec)
