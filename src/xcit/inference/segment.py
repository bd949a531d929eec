"""Segments images, as a whole or with a sliding window.

Shapes: `h`, `w` height and width of an image, `C` channels, `K` classes. A label map is uint8 (h, w).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.segmentation import IGNORED, Labels
from xcit.data.segmentation_transforms import normalized, target_size, to_pixels
from xcit.draw.labels import draw_labels, middles, overlay_labels, palette, shares_of
from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.label_tiff import label_areas
from xcit.images.polygons import write_geojson
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.read import ImageSource
from xcit.images.resize_8bit import Pixels, resize_bilinear_8bit
from xcit.images.transforms import IDENTITY
from xcit.inference.full_size import FullSize, asked_full_size
from xcit.inference.label_rows import LabelRows, best_labels
from xcit.inference.preparing import prepare_of_kind
from xcit.inference.reading import Readable, Unreadable, collected, listed, read_ahead
from xcit.inference.segment_full_size import LargeSegmentation, segment_large_each
from xcit.models import Segmenter, SegmenterInfo
from xcit.streaming import Memory
from xcit.zoo.kinds import SEGMENTER

_STRIP = 2048
"""Width in pixels of a vertical strip of an image. The logits of windows are averaged for one strip at a time."""

_WINDOWS_AT_ONCE = 4
"""Number of windows in a forward pass."""


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """A square window with sides of `size` pixels, which moves over an image in steps of `stride` pixels.

    The last window ends at the edge of the image.
    """

    size: int = 512
    stride: int = 341

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise XCiTError(
                f"a sliding window of {self.size} pixels can't move by {self.stride}: "
                f"the stride must be from 1 to {self.size}"
            )

    def starts(self, length: int) -> list[int]:
        """Returns the first pixel of each window along a side of an image with `length` pixels."""
        count = -(-max(length - self.size, 0) // self.stride) + 1
        return [max(min(index * self.stride, length - self.size), 0) for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A label map of an image.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        image: the image as it was read, 8-bit RGB (h, w, 3); for a large image at full size, a small copy.
        labels: the label map. A label is 255 if the file has no data for the pixel, or a mask leaves the pixel out.
        class_names: class names in the order of the labels; the labels as text if the names are unknown.
        scale: number of pixels of `labels` per pixel of `image`, along a side. It is above 1 only if `image` is a small
            copy.
    """

    source: str
    image: Pixels
    labels: Labels
    class_names: tuple[str, ...]
    scale: int = 1

    def areas(self) -> dict[str, float]:
        """Returns the share of each class in the labelled pixels, the largest share first.

        Classes that do not occur are left out.
        """
        counts = np.bincount(self.labels.ravel(), minlength=IGNORED)[:IGNORED]
        return {self.class_names[label]: share for label, share in shares_of(counts).items()}

    def picture(self) -> Image.Image:
        """Returns the label map as a palette image. The value of a pixel is its class."""
        return draw_labels(self.labels, len(self.class_names))

    def overlay(self) -> Image.Image:
        """Returns the image with the classes' colours over it, and a legend of the classes that occur."""
        labels = middles(self.labels, self.image.shape[:2], self.scale)
        return overlay_labels(self.image, labels, self.class_names)

    def write_polygons(self, path: Path) -> int:
        """Writes the outlines of all areas as GeoJSON, in pixel coordinates, and returns the number of areas."""
        areas = label_areas(self.labels, self.class_names, palette(len(self.class_names)))
        return write_geojson(path, areas, CellPlace(source=self.source, to_pixels=IDENTITY))


class Part(NamedTuple):
    """Averaged logits (K, rows, columns) of a part of an image, and the position of its upper left pixel."""

    top: int
    left: int
    logits: Tensor


def segment(
    images: ImageSource | Sequence[ImageSource],
    model: str | os.PathLike[str] | Segmenter,
    *,
    window: SlidingWindow | None = None,
    full_size: bool = False,
    memory: Memory = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    ignore_exif: bool = False,
) -> list[Segmentation | Unreadable]:
    """Assigns a class to each pixel of images.

    Args:
        images: one or several images of any size: paths of files or folders (searched recursively), patterns such as
            "photos/**/*.jpg", PIL images, arrays (h, w, 3), tensors (3, h, w), or batches of arrays or tensors.
        model: a name (the published weights are downloaded at the first use), a weights file, or a segmenter from
            `get_model`.
        window: a window that moves over each image; the logits are averaged where windows overlap. None means that
            each image is processed as a whole.
        full_size: process images of any size without resizing. Without a window, an image is processed in stripes, and
            the labels are the same as without stripes.
        memory: with `full_size` and without a window: limit of the memory in addition to the loaded model, in bytes or
            as text such as "4GB"; None means half of the free memory. See `xcit.streaming.Budget`.
        device: device of the computation; None means the device of a model that is passed in, else a GPU if there is
            one, else the CPU.
        dtype: dtype of the weights and the computation.
        ignore_exif: use the pixels as they are stored, without the rotation in the EXIF data.

    Returns:
        A label map for each image, in order, at the image's own size. An image that can't be read is replaced by an
        `Unreadable`.

    Raises:
        XCiTError: if none of the images can be read, if the model can't be loaded, or if it is not a segmenter.
    """
    whole = asked_full_size(full_size, memory)
    if window is not None and memory is not None:
        raise XCiTError("memory can't be combined with a window: give one of them")
    results = segment_each(
        listed(images, ignore_exif=ignore_exif), model, window=window, full_size=whole, device=device, dtype=dtype
    )
    return collected(results)


def segment_each(
    images: Iterable[Readable],
    model: str | os.PathLike[str] | Segmenter,
    *,
    window: SlidingWindow | None = None,
    full_size: FullSize | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Segmentation | Unreadable]:
    """Yields the results of `segment` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
    """
    network, info, place = prepare_segmenter(model, device, dtype)
    spec = info.preprocessing
    if full_size is not None and window is None:
        for large in segment_large_each(images, network, info, full_size):
            yield large if isinstance(large, Unreadable) else _whole(large)
        return
    names = info.class_names or tuple(map(str, range(network.num_classes)))
    prepare = partial(_prepare, spec=spec, full_size=full_size is not None, least=network.config.backbone.patch_size)
    for result in read_ahead(images, prepare, num_ahead=2):
        if isinstance(result, Unreadable):
            yield result
            continue
        source, (image, pixels) = result
        labels = predict_labels(network, pixels, spec, size=image.shape[:2], window=window, device=place, dtype=dtype)
        yield Segmentation(source=source, image=image, labels=labels, class_names=names)


def _whole(large: LargeSegmentation) -> Segmentation:
    """Converts a result for a large image to a `Segmentation`, with all labels in memory."""
    return Segmentation(
        source=large.source,
        image=large.overview,
        labels=np.array(large.labels()),
        class_names=large.class_names,
        scale=large.scale,
    )


def prepare_segmenter(
    model: str | os.PathLike[str] | nn.Module,
    device: str | torch.device | None,
    dtype: torch.dtype,
    *,
    what: str = "the model",
) -> tuple[Segmenter, SegmenterInfo, torch.device]:
    """Returns three values: a fused segmenter with the requested device and dtype, its info, and the device.

    A model that is passed in is not changed.

    Args:
        model: a name, a weights file, or a segmenter.
        device: see `segment`.
        dtype: see `segment`.
        what: name of a model that is passed in, for error messages.

    Raises:
        XCiTError: if the model can't be loaded or is not a segmenter, or if its preprocessing is unknown.
    """
    network, place = prepare_of_kind(SEGMENTER, model, device, what=what)
    if network.info is None:
        what = what if isinstance(model, nn.Module) else os.fspath(model)
        raise XCiTError(
            f"{what}: it is not known how to prepare images; load the weights with xcit.get_model(NAME, "
            "pretrained=FILE), or set model.info"
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

    As in the published models, logits are resized first to the size of `pixels`, and then to the size of the label map.
    The label of a pixel is the class with the largest logit.

    Args:
        network: the segmenter, in evaluation mode.
        pixels: the image at the size of the model's input, 8-bit (h, w, C).
        spec: the preprocessing. Only its mean and standard deviation are used.
        size: (height, width) of the label map.
        window: a window that moves over the image; None means the image as a whole. With a window, if `size` is the
            size of `pixels`, the memory for the logits does not grow with the image.
        device: device of the network; None means the device of its parameters.
        dtype: dtype of the input.
    """
    device = device or next(network.parameters()).device
    with torch.inference_mode():
        if window is None:
            image = normalized(pixels, spec).to(device, dtype)
            if network.goes_by_rows:
                return _labels_by_rows(network, image, size)
            return best_labels(network(image[None])[0], size)
        parts = slide(network, pixels, spec, window, device=device, dtype=dtype)
        height, width = pixels.shape[:2]
        if size == (height, width):
            labels = np.empty(size, np.uint8)
            for top, left, logits in parts:
                rows, columns = logits.shape[1:]
                labels[top : top + rows, left : left + columns] = best_labels(logits, (rows, columns))
            return labels
        whole = torch.empty(network.num_classes, height, width, device=device)
        for top, left, logits in parts:
            whole[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
        return best_labels(whole, size)


def _labels_by_rows(network: Segmenter, image: Tensor, size: tuple[int, int]) -> Labels:
    """Computes the label map of an image (C, h, w) by rows, so that the logits never exist at the image's size."""
    rows = LabelRows(network.logit_rows(image[None])[0], (image.shape[1], image.shape[2]), size)
    labels = np.empty(size, np.uint8)
    for start, some in rows.stripes():
        labels[start : start + len(some)] = some
    return labels


def slide(
    network: Segmenter,
    pixels: Pixels,
    spec: SegmentationPreprocessing,
    window: SlidingWindow,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Part]:
    """Moves a window over an image, and yields the mean of the logits of all windows at each pixel.

    Rows are yielded as soon as no later window covers them. A wide image is processed in vertical strips of
    `_STRIP` pixels. A window that crosses the border of two strips is computed for both strips.
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


def _prepare(image: Image.Image, spec: SegmentationPreprocessing, full_size: bool, least: int) -> tuple[Pixels, Pixels]:
    """Returns the pixels of the image at its own size, and the pixels of the model's input."""
    pixels = to_pixels(image, spec)
    if not full_size:
        pixels = resize_bilinear_8bit(pixels, target_size(pixels, spec))
    if min(pixels.shape[:2]) < least:
        raise XCiTError(
            f"the model's input for an image of {image.width} x {image.height} pixels has {pixels.shape[1]} x "
            f"{pixels.shape[0]} pixels: smaller than one patch of {least} x {least}"
        )
    return np.asarray(image), pixels
