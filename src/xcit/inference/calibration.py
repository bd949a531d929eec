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
from xcit.inference.reading import Readable, Unreadable, read_ahead


def calibration_images(
    images: Iterable[Readable], model: Any, size: int | None = None
) -> Iterator[Tensor | Unreadable]:
    """Yields preprocessed images (1, C, h, w) for a model; an image that can't be read gives an `Unreadable`.

    Args:
        images: the images to read.
        model: a classifier, backbone or segmenter.
        size: for a segmenter: height and width in pixels of the exported file's input, to which images are resized
            without keeping their aspect ratio. None means the size in the model's preprocessing.

    Raises:
        XCiTError: if the model's preprocessing is not known.
    """
    spec = getattr(model.info, "preprocessing", None)
    if isinstance(spec, Preprocessing):
        prepare: Any = partial(preprocess, spec=spec)
    elif isinstance(spec, SegmentationPreprocessing):
        prepare = partial(_scene, spec=spec, size=size)
    else:
        raise XCiTError("it is not known how to prepare images for the model: give mean and std")
    for result in read_ahead(images, prepare, num_ahead=4):
        yield result if isinstance(result, Unreadable) else result[1][None]


def _scene(image: Image.Image, spec: SegmentationPreprocessing, size: int | None) -> Tensor:
    pixels = to_pixels(image, spec)
    height_width = target_size(pixels, spec) if size is None else (size, size)
    return normalized(np.ascontiguousarray(resize_bilinear_8bit(pixels, height_width)), spec)
