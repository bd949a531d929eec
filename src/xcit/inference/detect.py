"""Detects objects in images: boxes, classes and masks, one image after another.

Shapes: `h`, `w` height and width of an image in pixels. A box is (x, y, width, height), in pixels of the image.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from xcit.data.coco_masks import MaskPart, decode_part, encode_parts
from xcit.draw.detections import draw_detections
from xcit.draw.labels import palette
from xcit.errors import XCiTError
from xcit.extras import missing_package, need_packages
from xcit.images.cell_place import CellPlace
from xcit.images.overview import overview
from xcit.images.polygons import MarkedArea, Polygon, write_geojson
from xcit.images.read import ImageSource
from xcit.images.rows import ImageRows, rows_info
from xcit.inference.full_size import OVERVIEW_PIXELS, FullSize, answer_each, asked_full_size
from xcit.inference.preparing import prepare_of_kind
from xcit.inference.reading import Readable, Unreadable, collected, listed, read_ahead
from xcit.streaming import Memory, Report
from xcit.zoo.kinds import DETECTOR

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN
    from xcit.models.detection.roi_heads import Detections

MAX_OBJECTS = 100
"""Default limit on the number of objects in an image, as in the published models."""

_MOST_PIXELS = 2**32 - 1
"""Largest number of pixels of an image, because COCO's code counts the pixels of compressed masks in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """An object that was found in an image.

    Attributes:
        label: label of the object's class, from 1.
        name: name of the class; the label as text if the names are unknown.
        score: confidence of the model, in 0..1.
        box: x, y, width and height, in pixels of the image.
        mask: a mask of the whole image, as COCO's compressed RLE (see `decode_mask`).
    """

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any]

    def polygons(self) -> list[Polygon]:
        """Returns a polygon for each connected part of the mask.

        A polygon consists of the outline of the part, followed by the outlines of the holes, all along pixel edges.

        Raises:
            XCiTError: if rasterio is not installed.
        """
        try:
            from rasterio.features import shapes
        except ImportError:
            raise missing_package("the outline of a mask", "rasterio") from None
        top, left, mask = decode_part(self.mask)
        if not mask.any():
            return []
        found = shapes(mask.astype(np.uint8), mask=mask)
        return [[[(x + left, y + top) for x, y in ring] for ring in geometry["coordinates"]] for geometry, _ in found]


@dataclass(frozen=True, kw_only=True)
class DetectedObjects:
    """The detections in an image.

    Attributes:
        source: the image's path or name; for an image in memory, "image N", where N is its index in the input.
        image: the image as it was read, 8-bit RGB (h, w, 3); for a large image at full size, a small copy.
        size: height and width, in pixels, of the original image. Boxes and masks refer to this size.
        objects: the objects, the highest score first.
        scale: number of pixels of the original image per pixel of `image`, along a side.
        cells: position of the pixels in the image file and on the ground (see `CellPlace`); None if the image was not
            processed at full size.
        is_slide: whether the image is a slide: a file that states the size of a pixel in micrometres.
    """

    source: str
    image: NDArray[np.uint8]
    size: tuple[int, int]
    objects: tuple[DetectedObject, ...]
    scale: int = 1
    cells: CellPlace | None = None
    is_slide: bool = False

    @property
    def is_placed(self) -> bool:
        """Whether other programs can use the coordinates of the objects: the image is georeferenced or a slide."""
        return self.cells is not None and (self.is_slide or self.cells.to_map is not None)

    def picture(self) -> Image.Image:
        """Draws masks, boxes, class names and scores on the image. The object with the highest score is on top."""
        shape = (self.image.shape[0], self.image.shape[1])
        objects = self.objects[::-1]
        return draw_detections(
            self.image,
            [tuple(value / self.scale for value in one.box) for one in objects],  # type: ignore[misc]
            [one.label for one in objects],
            [f"{one.name} {one.score:.2f}" for one in objects],
            (_small_mask(decode_part(one.mask), shape, self.scale) for one in objects),
        )

    def write_geojson(self, path: Path) -> int:
        """Writes the masks as polygons, with their scores, and returns the number of written objects.

        `write_geojson` in `images/polygons.py` describes the format. An object with an empty mask is left out.

        Raises:
            XCiTError: if the file can't be written, or rasterio is not installed.
        """
        colours = palette(1 + max((one.label for one in self.objects), default=0)).tolist()
        areas = (
            MarkedArea(
                class_name=one.name,
                polygons=polygons,
                color=tuple(colours[one.label]),
                measurements={"score": round(one.score, 6)},
            )
            for one in self.objects
            if (polygons := one.polygons())
        )
        return write_geojson(path, areas, self.cells or CellPlace(source=self.source, to_pixels=(1, 0, 0, 0, 1, 0)))


def detect(
    images: ImageSource | Sequence[ImageSource],
    model: "str | os.PathLike[str] | MaskRCNN",
    *,
    min_score: float = 0.5,
    sides: tuple[int, int] | None = None,
    max_objects: int = MAX_OBJECTS,
    full_size: bool = False,
    memory: Memory = None,
    device: str | torch.device | None = None,
    ignore_exif: bool = False,
) -> list[DetectedObjects | Unreadable]:
    """Detects objects in images.

    Args:
        images: one or several images of any size: paths of files or folders (searched recursively), patterns such as
            "photos/**/*.jpg", PIL images, arrays (h, w, 3), tensors (3, h, w), or batches of arrays or tensors.
        model: a name (the published weights are downloaded at the first use), a weights file, or a detector from
            `get_model`.
        min_score: objects with lower scores are left out.
        sides: limits of the short side and of the long side, in pixels. An image is resized to the
            largest size that is within both limits. None means the model's own limits.
        max_objects: largest number of objects per image. If it is above 100 (the published value), the detector
            computes ten proposals per object.
        full_size: process images of any size without resizing, in stripes and in bounded memory. The stripes
            do not change the detected objects.
        memory: with `full_size`: limit of the memory in addition to the loaded model, in bytes or as text such as
            "4GB"; None means half of the free memory. See `xcit.streaming.Budget`.
        device: device of the computation; None means the device of a model that is passed in, else a GPU if there is
            one, else the CPU.
        ignore_exif: use the pixels as they are stored, without the rotation in the EXIF data.

    Returns:
        The objects of each image, in order. An image that can't be read is replaced by an `Unreadable`.

    Raises:
        XCiTError: if none of the images can be read, if the model can't be loaded, or if it is not a detector.
    """
    whole = asked_full_size(full_size, memory)
    results = detect_each(
        listed(images, ignore_exif=ignore_exif),
        model,
        min_score=min_score,
        sides=sides,
        max_objects=max_objects,
        full_size=whole,
        device=device,
    )
    return collected(results)


def detect_each(
    images: Iterable[Readable],
    model: "str | os.PathLike[str] | MaskRCNN",
    *,
    min_score: float = 0.5,
    sides: tuple[int, int] | None = None,
    max_objects: int = MAX_OBJECTS,
    full_size: FullSize | None = None,
    device: str | torch.device | None = None,
) -> Iterator[DetectedObjects | Unreadable]:
    """Yields the results of `detect` one at a time, for any number of images.

    For an image that can't be read, yields an `Unreadable`. It is not an error if no image can be read.
    """
    if not 0 <= min_score <= 1:
        raise XCiTError(f"min_score is {min_score}, but must be in 0..1")
    if max_objects < 1:
        raise XCiTError(f"max_objects is {max_objects}, but must be at least 1")
    if sides is not None and full_size is not None:
        raise XCiTError("give sides, or full_size, not both")
    if sides is not None and not 0 < sides[0] <= sides[1]:
        raise XCiTError(f"an image can't be scaled to a short side of {sides[0]} and a long side of {sides[1]} pixels")
    network = prepare_detector(model, device)
    names = network.info.class_names if network.info is not None else ()
    if full_size is not None:
        yield from _full_size_each(images, network, min_score, max_objects, full_size)
        return
    # Only two images are read ahead, because they may be large.
    for result in read_ahead(images, np.asarray, num_ahead=2):
        if isinstance(result, Unreadable):
            yield result
            continue
        source, picture = result
        pixels = detector_pixels(picture, network.config.backbone.in_channels)
        size = (pixels.shape[1], pixels.shape[2])
        found = network.detect(pixels, min_score=min_score, sides=sides, max_objects=max_objects)
        yield DetectedObjects(
            source=source, image=picture, size=size, objects=tuple(detected_objects(found, size, names))
        )


def prepare_detector(
    model: str | os.PathLike[str] | nn.Module, device: str | torch.device | None, *, what: str = "the model"
) -> "MaskRCNN":
    """Returns a detector with a fused backbone, on its device. A model that is passed in is not changed.

    Args:
        model: a name, a weights file, or a detector.
        device: see `detect`.
        what: name of a model that is passed in, for error messages.

    Raises:
        XCiTError: if the model can't be loaded or is not a detector, or if `faster_coco_eval` is not installed.
    """
    need_packages("finding objects", "faster_coco_eval")
    network, place = prepare_of_kind(DETECTOR, model, device, what=what)
    return network.fuse().to(place)


def detected_objects(
    found: "Detections", size: tuple[int, int], class_names: Sequence[str] = ()
) -> Iterator[DetectedObject]:
    """Converts the detections of an image to objects, and yields them. Masks are encoded one at a time.

    Args:
        found: the detections.
        size: height and width of the image.
        class_names: names of the classes, or an empty sequence if the names are unknown.
    """
    from xcit.models.detection.masks import paste_columns

    boxes, labels, scores, masks = (part.cpu() for part in found)
    for box, label, score, mask in zip(boxes, labels.tolist(), scores.tolist(), masks, strict=True):
        pasted = paste_columns(mask, box, size)
        x1, y1, x2, y2 = box.tolist()
        yield DetectedObject(
            label=label,
            name=class_names[label - 1] if class_names else str(label),
            score=score,
            box=(x1, y1, x2 - x1, y2 - y1),
            mask=encode_parts(
                (MaskPart(part.top, part.left, part.probabilities.numpy() >= 0.5) for part in pasted), size
            ),
        )


def detect_large(
    rows: ImageRows,
    network: "MaskRCNN",
    *,
    min_score: float,
    max_objects: int,
    full_size: FullSize,
    after: "Callable[[Detections], None]" = lambda _: None,
) -> "tuple[Detections, Report]":
    """Detects the objects in one image at full size, in stripes; see `streaming.detection.detect_rows`.

    Raises:
        XCiTError: if the image has more pixels than COCO's masks can have, or if `detect_rows` raises this error.
    """
    from xcit.streaming.detection import detect_rows

    if rows.height * rows.width > _MOST_PIXELS:
        raise XCiTError(
            f"{rows_info(rows).name}: {rows.width} x {rows.height} pixels, but a mask in COCO's format can have "
            f"at most {_MOST_PIXELS:,} pixels: select a coarser level or a region"
        )
    return detect_rows(
        network,
        rows,
        min_score=min_score,
        max_objects=max_objects,
        memory=full_size.memory,
        progress=full_size.progress,
        after=after,
    )


def _full_size_each(
    images: Iterable[Readable | ImageRows], network: "MaskRCNN", min_score: float, max_objects: int, full_size: FullSize
) -> Iterator[DetectedObjects | Unreadable]:
    names = network.info.class_names if network.info is not None else ()

    def answer(rows: ImageRows) -> tuple[DetectedObjects, Report]:
        size, info, scale = (rows.height, rows.width), rows_info(rows), 1
        while rows.height * rows.width > OVERVIEW_PIXELS * scale**2:
            scale += 1
        results: list[DetectedObjects] = []

        def show(found: "Detections") -> None:
            results.append(
                DetectedObjects(
                    source=info.name,
                    image=overview(rows, scale),
                    size=size,
                    objects=tuple(detected_objects(found, size, names)),
                    scale=scale,
                    cells=CellPlace.of(info, 1),
                    is_slide="mpp" in info.metadata,
                )
            )

        how: dict[str, Any] = {"min_score": min_score, "max_objects": max_objects, "full_size": full_size}
        _, report = detect_large(rows, network, after=show, **how)
        return results[0], report

    for name, found in answer_each(images, full_size, answer):
        yield found if isinstance(found, Unreadable) else replace(found, source=name)


def _small_mask(part: MaskPart, shape: tuple[int, int], scale: int) -> NDArray[np.uint8]:
    """Reduces a mask to the size `shape` of a small picture.

    Each pixel of the result is the middle pixel of a square of `scale` x `scale` pixels of the mask.
    """
    small = np.zeros(shape, np.uint8)
    rows, columns = (
        np.arange(-((middle - start) // scale), -((middle - start - length) // scale))
        for start, length, middle in zip(part[:2], part.mask.shape, (scale // 2,) * 2, strict=True)
    )
    rows, columns = rows[rows < shape[0]], columns[columns < shape[1]]
    picked = part.mask[np.ix_(rows * scale + scale // 2 - part.top, columns * scale + scale // 2 - part.left)]
    small[np.ix_(rows, columns)] = picked
    return small


def detector_pixels(picture: NDArray[np.uint8], num_channels: int) -> torch.Tensor:
    """Converts an RGB image (h, w, 3) to a uint8 tensor (C, h, w) with one or three channels."""
    if num_channels == 1:
        return torch.from_numpy(np.array(Image.fromarray(picture).convert("L")))[None]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())
