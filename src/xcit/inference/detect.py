"""Images in, detections out: boxes, classes and masks of one image after another.

Shapes: `h`, `w` a picture's. Boxes are x, y, width and height, in its pixels.
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
        label: of its class, from 1.
        name: of its class; the label as text where names are unknown.
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
    """What was found in an image.

    Attributes:
        source: the image's path, or its place in the input.
        image: 8-bit RGB (h, w, 3), as it was read.
        objects: best first.
    """

    source: str
    image: NDArray[np.uint8]
    objects: tuple[DetectedObject, ...]

    def picture(self) -> Image.Image:
        """The image with masks, boxes, class names and scores, the best object on top."""
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
    ignore_exif: bool = False,
) -> list[DetectedObjects | Unreadable]:
    """Finds objects in images.

    Args:
        images: paths of files and folders (searched through), patterns such as "photos/**/*.jpg", PIL images, arrays
            (h, w, 3) and tensors (3, h, w), one or several, each of any size; or batches of arrays or tensors.
        model: a name (its published weights are downloaded once), a weights file, or a detector from `get_model`.
        min_score: what is scored less is left out.
        sides: as large as fits into this short and this long side an image is scaled; none takes the model's own.
        full_size: leave images in the size they have instead.
        device: where to compute; none is where the model is, else a GPU if there is one, else the CPU.
        ignore_exif: take the pixels as they are stored, whatever the EXIF orientation.

    Returns:
        The objects of each image, in order. What can't be read is an `Unreadable` in its place.

    Raises:
        XCiTError: if none of the images can be read, or the model can't be had or is no detector.
    """
    results = detect_each(
        listed(images, ignore_exif=ignore_exif),
        model,
        min_score=min_score,
        sides=sides,
        full_size=full_size,
        device=device,
    )
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
    """Like `detect`, one at a time and without end; what can't be read is reported in its place."""
    if not 0 <= min_score <= 1:
        raise XCiTError(f"min_score is {min_score}, must be in 0..1")
    if sides is not None and not 0 < sides[0] <= sides[1]:
        raise XCiTError(f"an image can't be scaled to a short side of {sides[0]} and a long one of {sides[1]} pixels")
    network = prepare_detector(model, device)
    names = network.info.class_names if network.info is not None else ()
    # Two at a time: a picture may be large.
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
    """A detector in place, with a faster backbone; one passed in is left as it was, and called `what` in errors.

    Raises:
        XCiTError: if it can't be had, is no detector, or what packs masks is not installed.
    """
    need_packages("finding objects", "faster_coco_eval")
    network, place = prepare_of_kind(DETECTOR, model, device, what=what)
    return network.fuse().to(place)


def detected_objects(
    found: "Detections", size: tuple[int, int], class_names: Sequence[str] = ()
) -> Iterator[DetectedObject]:
    """Detections of an image of this height and width, their masks packed one by one."""
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
    """uint8 (C, h, w) of an RGB picture (h, w, 3)."""
    if num_channels == 1:
        return torch.from_numpy(np.array(Image.fromarray(picture).convert("L")))[None]
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())
