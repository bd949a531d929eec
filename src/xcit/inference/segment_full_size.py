"""Computes label maps of images of any size, in bounded memory, without resizing them.

The labels are exactly those that the model computes for the whole image at once. First, the backbone's tokens are
stored (see `streaming/tapped.py`). Then the head reads the tokens by rows. The labels of each stripe are stored before
the next stripe is computed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xcit.data.segmentation import IGNORED, Labels
from xcit.draw.labels import middle_pixels, overlay_labels, palette, shares_of
from xcit.errors import XCiTError
from xcit.images.cell_place import CellPlace
from xcit.images.label_tiff import label_areas, write_label_tiff
from xcit.images.overview import overview
from xcit.images.polygons import write_geojson
from xcit.images.preprocess import Preprocessing
from xcit.images.resize_8bit import Pixels
from xcit.images.rows import ImageRows, mask_reader, rows_info
from xcit.inference.full_size import OVERVIEW_PIXELS, FullSize, name_of, opened
from xcit.inference.label_rows import BYTES_A_PIXEL, LabelRows
from xcit.inference.label_store import FileLabels, LabelStore, MemoryLabels
from xcit.inference.reading import Readable, Unreadable
from xcit.models import Segmenter, SegmenterInfo
from xcit.models.map_rows import numbers_held, rows_of_a_stripe
from xcit.models.stripes import spans
from xcit.models.xcit import FusedXCiT
from xcit.streaming import HeadNeeds, TappedRun, tapped
from xcit.streaming.pixels import check_channels
from xcit.streaming.state import model_digest

_USEFUL_ROWS = 16
"""Smallest number of rows of logits in a stripe, if the memory is large enough.

In a stripe of one or two rows, most of the rows that are read and computed would be halo. So a stripe has at least this
number of rows, even if fewer rows fill the processor's cache.
"""

_READ_ROWS = 512
"""Number of rows of labels that are read at a time, to count the pixels of each class."""


@dataclass(frozen=True, kw_only=True)
class LargeSegmentation:
    """A label map that may be larger than the memory. It can be read until the result of the next image is requested.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        size: height h and width w of the image, in pixels.
        class_names: class names in the order of the labels; the labels as text if the names are unknown.
        overview: a small copy of the image, 8-bit RGB (h / scale, w / scale, 3).
        scale: number of pixels of the image per pixel of the overview, along a side.
        cells: position of the pixels in the image file and on the ground (see `CellPlace`).
        store: the label map. A label is 255 if the file has no data for the pixel, or a mask leaves the pixel out.
    """

    source: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    overview: Pixels
    scale: int
    cells: CellPlace
    store: LabelStore

    def labels(self) -> Labels:
        """Returns all labels, uint8 (h, w)."""
        return self.store.read(0, self.size[0])

    def areas(self) -> dict[str, float]:
        """Returns the share of each class in the labelled pixels, the largest share first.

        Classes that do not occur are left out.
        """
        counts = np.zeros(256, np.int64)
        for start, end in spans(self.size[0], _READ_ROWS):
            counts += np.bincount(self.store.read(start, end).ravel(), minlength=256)
        return {self.class_names[label]: share for label, share in shares_of(counts[:IGNORED]).items()}

    def small_labels(self) -> Labels:
        """Returns a label map at the size of the overview.

        A pixel of the overview covers a square of the image. The pixel gets the label in the middle of this square.
        """
        sides = zip(self.overview.shape[:2], self.size, strict=True)
        rows, columns = (middle_pixels(count, side, self.scale) for count, side in sides)
        return np.concatenate([self.store.read(row, row + 1)[:, columns] for row in rows.tolist()])

    def overlay(self) -> Image.Image:
        """Returns the overview with the classes' colours over it, and a legend of the classes that occur."""
        return overlay_labels(self.overview, self.small_labels(), self.class_names)

    def write_tiff(self, path: Path) -> None:
        """Writes the label map to a TIFF file; see `write_label_tiff`."""
        colors = palette(len(self.class_names))
        write_label_tiff(path, self.size, self.store.read, self.class_names, colors, self.cells)

    def write_polygons(self, path: Path) -> int:
        """Writes the outlines of all areas as GeoJSON (see `write_geojson`), and returns the number of areas."""
        areas = label_areas(self.labels(), self.class_names, palette(len(self.class_names)))
        return write_geojson(path, areas, self.cells)


def segment_large_each(
    images: Iterable[Readable | ImageRows], network: Segmenter, info: SegmenterInfo, full_size: FullSize
) -> Iterator[LargeSegmentation | Unreadable]:
    """Yields each image's label map. An image that can't be read gives an `Unreadable`.

    The scratch files of a result are removed when the next result is requested. If a run that uses scratch files
    ends earlier, the next call for the same image continues after the last stored stripe.

    Args:
        images: files, PIL images, arrays, or sources of rows.
        network: the fused segmenter, on its device and in its dtype.
        info: the class names and the preprocessing of the network.
        full_size: the memory limit, the callbacks, and the part of each image to read.

    Raises:
        XCiTError: if a part of the network is replaced, parametrised or has hooks, because such a network can't be
            computed by rows.
    """
    if not network.goes_by_rows:
        raise XCiTError(
            "the segmenter has parts that are hooked, replaced or parametrised, so it can't process an image by rows: "
            "give a sliding window, or a model without such parts"
        )
    for index, image in enumerate(images):
        name = name_of(image, index)
        try:
            with opened(image, name, full_size) as rows:
                yield from _segmented(rows, name, network, info, full_size)
        except XCiTError as error:
            yield Unreadable(source=name, reason=str(error))


def _segmented(
    rows: ImageRows, name: str, network: Segmenter, info: SegmenterInfo, full_size: FullSize
) -> Iterator[LargeSegmentation]:
    scale = 1
    while rows.height * rows.width > OVERVIEW_PIXELS * scale**2:
        scale *= 2
    with labels_of(rows, network, info, full_size) as store:
        yield LargeSegmentation(
            source=name,
            size=(rows.height, rows.width),
            class_names=info.class_names or tuple(map(str, range(network.num_classes))),
            overview=overview(rows, scale),
            scale=scale,
            cells=CellPlace.of(rows_info(rows), 1),
            store=store,
        )


@contextmanager
def labels_of(rows: ImageRows, network: Segmenter, info: SegmenterInfo, full_size: FullSize) -> Iterator[LabelStore]:
    """Computes the labels of an image at full size, and yields the store with all labels. See `segment_large_each`."""
    xcit = network.backbone.xcit
    assert isinstance(xcit, FusedXCiT)
    spec = Preprocessing(mean=info.preprocessing.mean, std=info.preprocessing.std)
    check_channels(rows, spec)
    size = (rows.height, rows.width)
    patch = xcit.config.patch_size
    if min(size) < patch:
        raise XCiTError(
            f"{rows_info(rows).name}: {size[1]} x {size[0]} pixels, smaller than one patch of {patch} x {patch}"
        )
    head = _Head(network, size)
    needs = HeadNeeds(
        key=f"labels by {model_digest(network)}",
        memory=head.memory(1),
        maps=size[0] * size[1],
        passes=2 if network.pool_sizes else 1,
        cost=2 * xcit.config.depth,
    )
    with tapped(
        xcit,
        network.backbone.out_indices,
        rows,
        needs,
        preprocessing=spec,
        memory=full_size.memory,
        progress=full_size.progress,
    ) as run:
        if run.folder is None:
            store: LabelStore = MemoryLabels(*size)
            done = 0
        else:
            store = file = FileLabels(run.folder / "labels.bin", size[1])
            done = int(run.earlier.get("rows", 0))
            done = done if file.holds(done) else 0
        head.label(run, rows, store, done)
        if full_size.report is not None:
            full_size.report(rows_info(rows).name, run.report())
        yield store


class _Head:
    """Computes the labels of an image of a given size with a segmenter's head, and the memory that the head needs."""

    def __init__(self, network: Segmenter, size: tuple[int, int]) -> None:
        xcit = network.backbone.xcit
        assert isinstance(xcit, FusedXCiT)
        self._network, self._size = network, size
        grid, dim = xcit.embedding.grid(*size), xcit.config.embed_dim
        self._number = next(network.parameters())
        means = [self._number.new_zeros(side, side, dim) for side in network.pool_sizes]
        with torch.inference_mode():
            logits = network.rows([_Unread(*grid, dim) for _ in network.backbone.out_indices], means)
            self._labels = LabelRows(logits, size)

    def memory(self, rows: int) -> int:
        """Returns the memory in bytes that the head needs for stripes with `rows` rows of logits."""
        height, width = self._size
        logits = self._labels.logits
        pixel_rows = -(-rows * height // logits.height)
        return (
            numbers_held(logits, rows) * self._number.element_size()
            + pixel_rows * width * BYTES_A_PIXEL
            + 2 * 4 * (rows + 2) * logits.width * logits.channels
        )

    def rows_at_once(self, memory: int) -> int:
        """Returns the number of rows of logits per stripe for which `memory` bytes are enough, but at least 1."""
        rows = max(_USEFUL_ROWS, rows_of_a_stripe(self._labels.logits))
        while rows > 1 and self.memory(rows) > memory:
            rows //= 2
        return rows

    @torch.inference_mode()
    def label(self, run: TappedRun, source: ImageRows, store: LabelStore, done: int) -> None:
        """Computes and stores all labels, except the first `done` rows, which are stored already."""
        network, at_once = self._network, self.rows_at_once(run.memory)
        taps = [run.taps[block] for block in network.backbone.out_indices]
        passes = 2 if network.pool_sizes else 1
        labels = LabelRows(network.rows(taps, network.pool(taps, max(1, at_once // 8))), self._size)
        read_mask = mask_reader(source)
        for start, some in labels.stripes(at_once, done):
            end = start + len(some)
            if read_mask is not None:
                some = np.where(read_mask(start, end), some, np.uint8(IGNORED))
            store.write(start, some)
            run.save({"rows": end})
            run.advance(passes * end / labels.height)


class _Unread:
    """A map that has a size, but no values."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels

    def read(self, start: int, end: int) -> torch.Tensor:
        """Always raises an error, because the map has no values."""
        raise NotImplementedError
