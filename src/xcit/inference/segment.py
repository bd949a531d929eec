"""Segments images: whole images, or large ones by a sliding window in bounded memory.

Shapes: `h`, `w` size of an image, `C` its channels, `K` classes. A label map is uint8 (h, w).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.segmentation import Labels
from xcit.data.segmentation_transforms import normalized, target_size, to_pixels
from xcit.draw.labels import draw_labels, label_shares, overlay_labels
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.read import ImageSource
from xcit.images.resize_8bit import Pixels, resize_bilinear_8bit
from xcit.inference.preparing import prepare_of_kind
from xcit.inference.reading import Readable, Unreadable, collected, listed, read_ahead
from xcit.models import Segmenter, SegmenterInfo
from xcit.models.segmentation import resize_bilinear
from xcit.zoo.kinds import SEGMENTER

_CLASSES_AT_ONCE = 16
"""Number of classes whose logits are in memory at an image's full size at once."""

_STRIP = 2048
"""Number of columns of an image whose windows are averaged at once."""

_WINDOWS_AT_ONCE = 4
"""Number of windows in a forward pass."""


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Windows with sides of `size` pixels, `stride` pixels apart; the last one ends at the edge of the image."""

    size: int = 512
    stride: int = 341

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise XCiTError(
                f"a sliding window of {self.size} pixels can't move by {self.stride}: from 1 to its size is possible"
            )

    def starts(self, length: int) -> list[int]:
        """Returns where windows begin along a side of an image."""
        count = -(-max(length - self.size, 0) // self.stride) + 1
        return [max(min(index * self.stride, length - self.size), 0) for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A label map of an image.

    Attributes:
        source: the image's path, or its place in the input.
        image: 8-bit RGB (h, w, 3), as it was read.
        labels: the class of each pixel.
        class_names: names in the order of the labels; numbers if the names are unknown.
    """

    source: str
    image: Pixels
    labels: Labels
    class_names: tuple[str, ...]

    def areas(self) -> dict[str, float]:
        """Returns the share of pixels by class name, for the classes that occur, the largest first."""
        return {self.class_names[label]: share for label, share in label_shares(self.labels).items()}

    def picture(self) -> Image.Image:
        """Returns the label map as a palette image, whose values are the classes."""
        return draw_labels(self.labels, len(self.class_names))

    def overlay(self) -> Image.Image:
        """Returns the image with the classes' colours over it, and a legend of the classes that occur."""
        return overlay_labels(self.image, self.labels, self.class_names)


class Part(NamedTuple):
    """Averaged logits (K, rows, columns) of a part of an image, and the position of the part."""

    top: int
    left: int
    logits: Tensor


def segment(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | Segmenter,
    *,
    window: SlidingWindow | None = None,
    full_size: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Segmentation | Unreadable]:
    """Assigns a class to each pixel of images.

    Args:
        images: paths of files and folders (searched recursively), patterns such as "photos/**/*.jpg", PIL images,
            arrays (h, w, 3) and tensors (3, h, w), one or several, each of any size; or batches of arrays or tensors.
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`.
        window: slide a window over each image, and average the logits where windows overlap; None takes the whole
            image.
        full_size: keep images at their own size instead of scaling them by the model's preprocessing.
        device: where to compute; None means a GPU if there is one, else the CPU.
        dtype: dtype of weights and computation.

    Returns:
        For each image a label map at the image's own size. An image that can't be read is replaced by an `Unreadable`.

    Raises:
        XCiTError: if none of the images can be read, or the model can't be loaded or is not a segmenter.
    """
    results = segment_each(listed(images), model, window=window, full_size=full_size, device=device, dtype=dtype)
    return collected(results)


def segment_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | Segmenter,
    *,
    window: SlidingWindow | None = None,
    full_size: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Segmentation | Unreadable]:
    """Like `segment`, for any number of images, one at a time; unreadable images are reported in their place."""
    network, info, place = prepare_segmenter(model, device, dtype)
    spec = info.preprocessing
    names = info.class_names or tuple(map(str, range(network.num_classes)))
    prepare = partial(_prepare, spec=spec, full_size=full_size, least=network.config.backbone.patch_size)
    for result in read_ahead(images, prepare, num_ahead=2):
        if isinstance(result, Unreadable):
            yield result
            continue
        source, (image, pixels) = result
        labels = predict_labels(network, pixels, spec, size=image.shape[:2], window=window, device=place, dtype=dtype)
        yield Segmentation(source=source, image=image, labels=labels, class_names=names)


def prepare_segmenter(
    model: str | os.PathLike[str] | nn.Module,
    device: str | torch.device | None,
    dtype: torch.dtype,
    *,
    what: str = "the model",
) -> tuple[Segmenter, SegmenterInfo, torch.device]:
    """Returns a fused segmenter on its device and in its dtype; one that was passed in does not change.

    `what` is the name of a model that was passed in, for error messages.

    Raises:
        XCiTError: if the model can't be loaded or is not a segmenter, or its preprocessing is unknown.
    """
    network, place = prepare_of_kind(SEGMENTER, model, device, what=what)
    if network.info is None:
        what = what if isinstance(model, nn.Module) else os.fspath(model)
        raise XCiTError(
            f"{what}: it is not known how to prepare images; load it by its model's name, or set model.info"
        )
    return network.fuse().to(place, dtype), network.info, place


def predict_labels(
    network: Segmenter,
    pixels: Pixels,
    spec: SegmentationPreprocessing,
    *,
    size: tuple[int, int],
    window: SlidingWindow | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Labels:
    """Computes the label map of one image.

    As published, logits are resized to the size of the pixels and then to that of the label map; then the largest wins.

    Args:
        network: the segmenter, in evaluation mode.
        pixels: 8-bit (h, w, C) at the size of the model's input.
        spec: the preprocessing, of which mean and standard deviation are used.
        size: (height, width) of the label map.
        window: slides a window over the image; None takes the whole image. If `size` is that of the pixels, memory then
            does not grow with the image.
        device: device of the network; None means that of its parameters.
        dtype: dtype of the input.
    """
    device = device or next(network.parameters()).device
    with torch.inference_mode():
        if window is None:
            image = normalized(pixels, spec).to(device, dtype)
            return _best(network(image[None])[0], size)
        parts = slide(network, pixels, spec, window, device=device, dtype=dtype)
        height, width = pixels.shape[:2]
        if size == (height, width):
            labels = np.empty(size, np.uint8)
            for top, left, logits in parts:
                rows, columns = logits.shape[1:]
                labels[top : top + rows, left : left + columns] = _best(logits, (rows, columns))
            return labels
        whole = torch.empty(network.num_classes, height, width, device=device)
        for top, left, logits in parts:
            whole[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
        return _best(whole, size)


def slide(
    network: Segmenter,
    pixels: Pixels,
    spec: SegmentationPreprocessing,
    window: SlidingWindow,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Part]:
    """Yields the mean of the logits of all windows over each pixel, in parts: rows that no later window covers.

    An image that is wider than some thousand pixels is processed in strips; windows across the border of two strips are
    computed for both.
    """
    height, width = pixels.shape[:2]
    tops, lefts = window.starts(height), window.starts(width)
    rows, columns = min(window.size, height), min(window.size, width)
    for strip_left in range(0, width, _STRIP):
        strip_right = min(strip_left + _STRIP, width)
        seen = [left for left in lefts if left < strip_right and left + columns > strip_left]
        total = torch.zeros(network.num_classes, rows, strip_right - strip_left, device=device)
        count = torch.zeros(rows, strip_right - strip_left, device=device)
        for index, top in enumerate(tops):
            for first in range(0, len(seen), _WINDOWS_AT_ONCE):
                some = seen[first : first + _WINDOWS_AT_ONCE]
                crops = [normalized(pixels[top : top + rows, left : left + columns], spec) for left in some]
                for left, logits in zip(some, network(torch.stack(crops).to(device, dtype)), strict=True):
                    start, end = max(left, strip_left), min(left + columns, strip_right)
                    place = slice(start - strip_left, end - strip_left)
                    total[:, :, place] += logits[:, :, start - left : end - left]
                    count[:, place] += 1
            num_done = (tops[index + 1] if index + 1 < len(tops) else height) - top
            yield Part(top, strip_left, total[:, :num_done] / count[:num_done])
            total = torch.cat([total[:, num_done:], torch.zeros_like(total[:, :num_done])], dim=1)
            count = torch.cat([count[num_done:], torch.zeros_like(count[:num_done])])


def _best(logits: Tensor, size: tuple[int, int]) -> Labels:
    """Returns the class of the largest logit at each pixel, after resizing logits (K, h, w) a few classes at a time."""
    best: Tensor | None = None
    labels = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        some = logits[first : first + _CLASSES_AT_ONCE].float()
        if some.shape[1:] != size:
            some = resize_bilinear(some[None], size)[0]
        values, indices = some.max(dim=0)
        indices = (indices + first).to(torch.uint8)
        if best is None:
            best, labels = values, indices
        else:
            labels = torch.where(values > best, indices, labels)
            best = torch.maximum(best, values)
    return labels.cpu().numpy()


def _prepare(image: Image.Image, spec: SegmentationPreprocessing, full_size: bool, least: int) -> tuple[Pixels, Pixels]:
    """Returns the image's own pixels, and the pixels of the model's input."""
    pixels = to_pixels(image, spec)
    if not full_size:
        pixels = resize_bilinear_8bit(pixels, target_size(pixels, spec))
    if min(pixels.shape[:2]) < least:
        raise XCiTError(
            f"an image of {image.width} x {image.height} pixels, of which the model sees {pixels.shape[1]} x "
            f"{pixels.shape[0]}: less than one patch of {least}"
        )
    return np.asarray(image), pixels
