"""Images in, label maps out: whole images, or large ones by a sliding window in bounded memory.

Shapes: `h`, `w` a picture's, `C` its channels, `K` classes. A label map is uint8 (h, w).
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
"""Columns of an image whose windows are averaged at one time."""

_WINDOWS_AT_ONCE = 4
"""Windows a forward pass."""


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Windows of `size` pixels a side, `stride` apart; the last of a row ends where the image does."""

    size: int = 512
    stride: int = 341

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.size:
            raise XCiTError(
                f"a sliding window of {self.size} pixels can't move by {self.stride}: from 1 to its size is possible"
            )

    def starts(self, length: int) -> list[int]:
        """Where windows begin along a side of an image."""
        count = -(-max(length - self.size, 0) // self.stride) + 1
        return [max(min(index * self.stride, length - self.size), 0) for index in range(count)]


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A label map of an image.

    Attributes:
        source: the image's path, or its place in the input.
        image: 8-bit RGB (h, w, 3), as it was read.
        labels: the class of each pixel; 255 where the file has no data, or a mask leaves it out.
        class_names: in the order of the labels; numbers where they are unknown.
        scale: pixels of the labels a pixel of `image`: above 1 of an image that was taken at its own, large size.
    """

    source: str
    image: Pixels
    labels: Labels
    class_names: tuple[str, ...]
    scale: int = 1

    def areas(self) -> dict[str, float]:
        """Share of the labelled pixels by class name, of the classes that there are, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=IGNORED)[:IGNORED]
        return {self.class_names[label]: share for label, share in shares_of(counts).items()}

    def picture(self) -> Image.Image:
        """The label map as a palette image: its numbers are the classes."""
        return draw_labels(self.labels, len(self.class_names))

    def overlay(self) -> Image.Image:
        """The classes' colours over the image, with a legend of those that there are."""
        labels = middles(self.labels, self.image.shape[:2], self.scale)
        return overlay_labels(self.image, labels, self.class_names)

    def write_polygons(self, path: Path) -> int:
        """Writes the outlines of the classes' areas as GeoJSON in pixels, and gives their number."""
        areas = label_areas(self.labels, self.class_names, palette(len(self.class_names)))
        return write_geojson(path, areas, CellPlace(source=self.source, to_pixels=IDENTITY))


class Part(NamedTuple):
    """Averaged logits (K, rows, columns) of a part of an image, and where it begins."""

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
) -> list[Segmentation | Unreadable]:
    """Gives each pixel of images a class.

    Args:
        images: paths of files and folders (searched through), patterns such as "photos/**/*.jpg", PIL images, arrays
            (h, w, 3) and tensors (3, h, w), one or several, each of any size; or batches of arrays or tensors.
        model: a name (its published weights are downloaded once), a weights file, or a model from `get_model`.
        window: go over each image by a window, and average the logits where windows overlap; none takes it whole.
        full_size: leave images at their own size, however large, instead of scaling them as the model's preprocessing
            says; without a window their labels are those of the whole image, which goes through in stripes.
        memory: with `full_size` and no window: the most that it may add to the loaded model, in bytes or as "4GB"; none
            is half of what is free. See `xcit.streaming.Budget`.
        device: where to compute; none is a GPU if there is one, else the CPU.
        dtype: of weights and computation.

    Returns:
        A label map at its own size for each image. What can't be read is an `Unreadable` in its place.

    Raises:
        XCiTError: if none of the images can be read, or the model can't be had or is no segmenter.
    """
    whole = asked_full_size(full_size, memory)
    if window is not None and memory is not None:
        raise XCiTError("memory bounds passes over whole images alone: give it, or a window, not both")
    results = segment_each(listed(images), model, window=window, full_size=whole, device=device, dtype=dtype)
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
    """Like `segment`, one at a time and without end; what can't be read is reported in its place."""
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
    """With all labels in memory."""
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
    """A segmenter fused, in place and precision; one that was passed in is left as it was, and called `what` in errors.

    Raises:
        XCiTError: if it can't be had, is no segmenter, or it is not known how to prepare images for it.
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
    """The label map of one image.

    Logits go to the size of the pixels first and then to that of the label map, as published; the largest wins.

    Args:
        network: in evaluation mode.
        pixels: 8-bit (h, w, C) at the size that the model sees.
        spec: whose mean and standard deviation are taken.
        size: (height, width) of the label map.
        window: how to go over the image; none takes it whole. Where `size` is the pixels' own, memory then does not
            grow with the image.
        device: of the network; none asks its parameters.
        dtype: of the input.
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
    """The label map of an image (C, h, w), whose logits never exist at its size."""
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
    """The mean of the logits of all windows over each pixel, part by part: rows as soon as no later window sees them.

    An image wider than some thousand pixels is done in strips; windows on the border of two are computed for each.
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
    """The image as it is, and the pixels that the model sees."""
    pixels = to_pixels(image, spec)
    if not full_size:
        pixels = resize_bilinear_8bit(pixels, target_size(pixels, spec))
    if min(pixels.shape[:2]) < least:
        raise XCiTError(
            f"an image of {image.width} x {image.height} pixels, of which the model sees {pixels.shape[1]} x "
            f"{pixels.shape[0]}: less than one patch of {least}"
        )
    return np.asarray(image), pixels
