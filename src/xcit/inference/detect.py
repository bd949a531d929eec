"""Detects objects in images: boxes, classes and masks, one image after another.

Shapes: `h`, `w` size of an image. Boxes are x, y, width and height, in its pixels.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from xcit.data.coco_masks import decode_mask, encode_part
from xcit.draw.detections import draw_detections
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.images.read import ImageSource
from xcit.inference.preparing import prepare_of_kind
from xcit.inference.reading import Readable, Unreadable, collected, listed, read_ahead
from xcit.zoo.kinds import DETECTOR

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN
    from xcit.models.detection.roi_heads import Detections


@dataclass(frozen=True, kw_only=True)
class DetectedObject:
    """One object.

    Attributes:
        label: label of its class, from 1.
        name: name of its class; the label as text if names are unknown.
        score: 0..1.
        box: x, y, width, height.
        mask: packed RLE of the whole image (see `decode_mask`).
    """

    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DetectedObjects:
    """The detections in an image.

    Attributes:
        source: the image's path, or its place in the input.
        image: 8-bit RGB (h, w, 3), as it was read.
        objects: the objects, best first.
    """

    source: str
    image: NDArray[np.uint8]
    objects: tuple[DetectedObject, ...]

    def picture(self) -> Image.Image:
        """Returns the image with masks, boxes, class names and scores, the best object on top."""
        size = (self.image.shape[0], self.image.shape[1])
        objects = self.objects[::-1]
        return draw_detections(
            self.image,
            [one.box for one in objects],
            [one.label for one in objects],
            [f"{one.name} {one.score:.2f}" for one in objects],
            (decode_mask(one.mask, size) for one in objects),
        )


def detect(
    images: ImageSource | Sequence[ImageSource],
    model: "str | os.PathLike[str] | MaskRCNN",
    *,
    min_score: float = 0.5,
    sides: tuple[int, int] | None = None,
    full_size: bool = False,
    device: str | torch.device | None = None,
) -> list[DetectedObjects | Unreadable]:
    """Detects objects in images.

    Args:
        images: paths of files and folders (searched recursively), patterns such as "photos/**/*.jpg", PIL images,
            arrays (h, w, 3) and tensors (3, h, w), one or several, each of any size; or batches of arrays or tensors.
        model: a name (its published weights are downloaded once), a weights file, or a detector from `get_model`.
        min_score: objects with lower scores are left out.
        sides: scale an image to the largest size within this short and this long side; None takes the model's own
            sides.
        full_size: keep images at their own size instead.
        device: where to compute; None means the model's device, or for a name a GPU if there is one, else the CPU.

    Returns:
        The objects of each image, in order. An image that can't be read is replaced by an `Unreadable`.

    Raises:
        XCiTError: if none of the images can be read, or the model can't be loaded or is not a detector.
    """
    results = detect_each(listed(images), model, min_score=min_score, sides=sides, full_size=full_size, device=device)
    return collected(results)


def detect_each(
    images: Iterable[Readable],
    model: "str | os.PathLike[str] | MaskRCNN",
    *,
    min_score: float = 0.5,
    sides: tuple[int, int] | None = None,
    full_size: bool = False,
    device: str | torch.device | None = None,
) -> Iterator[DetectedObjects | Unreadable]:
    """Like `detect`, for any number of images, one at a time; unreadable images are reported in their place."""
    if not 0 <= min_score <= 1:
        raise XCiTError(f"min_score is {min_score}, must be in 0..1")
    if sides is not None and not 0 < sides[0] <= sides[1]:
        raise XCiTError(f"an image can't be scaled to a short side of {sides[0]} and a long one of {sides[1]} pixels")
    network = prepare_detector(model, device)
    names = network.info.class_names if network.info is not None else ()
    # Only two images are read ahead, because they may be large.
    for result in read_ahead(images, np.asarray, num_ahead=2):
        if isinstance(result, Unreadable):
            yield result
            continue
        source, picture = result
        pixels = _channels(picture, network.config.backbone.in_channels)
        size = (pixels.shape[1], pixels.shape[2])
        found = network.detect(pixels, min_score=min_score, sides=(min(size), max(size)) if full_size else sides)
        yield DetectedObjects(source=source, image=picture, objects=tuple(detected_objects(found, size, names)))


def prepare_detector(
    model: str | os.PathLike[str] | nn.Module, device: str | torch.device | None, *, what: str = "the model"
) -> "MaskRCNN":
    """Returns a detector with a fused backbone on its device; one that was passed in does not change.

    `what` is the name of a model that was passed in, for error messages.

    Raises:
        XCiTError: if the model can't be loaded or is not a detector, or the package that encodes masks is missing.
    """
    need_packages("finding objects", "faster_coco_eval")
    network, place = prepare_of_kind(DETECTOR, model, device, what=what)
    return network.fuse().to(place)


def detected_objects(
    found: "Detections", size: tuple[int, int], class_names: Sequence[str] = ()
) -> Iterator[DetectedObject]:
    """Yields the detections of an image of this height and width; their masks are encoded one at a time."""
    from xcit.models.detection.masks import paste_mask

    boxes, labels, scores, masks = (part.cpu() for part in found)
    for box, label, score, mask in zip(boxes, labels.tolist(), scores.tolist(), masks, strict=True):
        top, left, probabilities = paste_mask(mask, box, size)
        x1, y1, x2, y2 = box.tolist()
        yield DetectedObject(
            label=label,
            name=class_names[label - 1] if class_names else str(label),
            score=score,
            box=(x1, y1, x2 - x1, y2 - y1),
            mask=encode_part((probabilities >= 0.5).numpy(), top, left, size),
        )


def _channels(picture: NDArray[np.uint8], num_channels: int) -> torch.Tensor:
    """Converts an RGB image (h, w, 3) to uint8 (C, h, w)."""
    if num_channels == 1:
        return torch.from_numpy(np.array(Image.fromarray(picture).convert("L")))[None]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())
