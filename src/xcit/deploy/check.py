"""Compares the outputs of an exported file with the outputs of its model.

Shapes: `h` and `w` are the height and width of an image.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xcit.deploy.formats import Run
from xcit.deploy.graphs import Normalization, inputs_of
from xcit.deploy.sheet import Precision, Sheet
from xcit.errors import XCiTError
from xcit.models.modes import evaluating
from xcit.ops.forms import GRAM_FROM
from xcit.zoo.kinds import DETECTOR, SEGMENTER

SEED = 0

LIMITS: dict[Precision, float] = {"float32": 1e-3, "float16": 0.1, "int8": 0.5}
"""The largest allowed value of `Difference.value` for each precision. A file with a larger value is rejected."""

MAX_UNMATCHED: dict[Precision, float] = {"float32": 0.05, "float16": 0.2, "int8": 0.35}
"""The largest allowed fraction of detections without a counterpart.

Some detections may differ: if two overlapping boxes have nearly equal scores, rounding decides which of them NMS keeps.
"""

_MATCHED_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between a file's outputs and the model's.

    Attributes:
        value: the largest absolute difference, divided by the model's largest absolute value in that output. For a
            detector: the largest difference of a score, of a mask's probability, or of a coordinate divided by the
            longer side of the image; for int8, the difference of a mask is the mean of its pixels. It is infinite if
            no detection of the model has a counterpart, or if an output is not finite. For int8 and other models: the
            root mean square of the difference, divided by the root mean square of the model's outputs.
        sizes: heights and widths of the images, in the order in which they were compared.
        batch_sizes: the batch sizes that were compared.
        num_detections: number of boxes that the model found; None if the model is not a detector.
        num_unmatched: number of boxes without a counterpart: those that only the model found, plus those that only the
            file found.
    """

    value: float
    sizes: tuple[tuple[int, int], ...]
    batch_sizes: tuple[int, ...]
    num_detections: int | None = None
    num_unmatched: int = 0

    def sentence(self) -> str:
        """Describes the difference in words for the user."""
        sizes = ", ".join(f"{height}x{width}" for height, width in dict.fromkeys(self.sizes))
        batches = " and ".join(map(str, self.batch_sizes))
        text = f"largest difference from the model {self.value:.1e} (batches of {batches}; {sizes} pixels)"
        if self.num_detections is not None:
            text += f"; {self.num_detections} detections, {self.num_unmatched} without a counterpart"
        return text


def compare(
    run: Run, model: nn.Module, sheet: Sheet, normalization: Normalization | None, *, least_patches: int
) -> Difference:
    """Compares a file with its model on images of noise with a fixed seed.

    If the file accepts every image size, the images have five sizes, some of them odd. If the file has a fixed size,
    the images have this size, and a detector also gets smaller images. The batch sizes are 1 and 3; a detector gets one
    image at a time.

    Args:
        run: the exported file.
        model: the model that the file was made from.
        sheet: the description in the file.
        normalization: the normalization at the start of the file's graph; None if the graph does not normalise. The
            input of the model is always normalised images.
        least_patches: number of patches along the shorter side of the smallest image that the file accepts.

    Raises:
        XCiTError: if the outputs differ by more than `LIMITS` or `MAX_UNMATCHED` allow.
    """
    sizes = _sizes(sheet, least_patches) if sheet.facts.size is None else _fixed_sizes(sheet, sheet.facts.size)
    draw = torch.Generator().manual_seed(SEED)
    if sheet.kind is DETECTOR:
        found = _compare_detections(run, model, sheet, _blobs(sheet, sizes, normalization, draw))
    else:
        reference = reference_of(model, sheet)
        values = []
        for height, width in sizes:
            for batch in (1, 3):
                pixels = torch.rand(batch, sheet.channels, height, width, generator=draw)
                values.append(_largest(run, reference, pixels, normalization))
        found = Difference(value=max(values), sizes=tuple(sizes), batch_sizes=(1, 3))
    return _checked(found, sheet.facts.precision)


def compare_on(run: Run, model: nn.Module, sheet: Sheet, batches: Iterable[tuple[Tensor, Tensor]]) -> Difference:
    """Compares a quantised file with its model on images.

    Args:
        run: the exported file.
        model: the model that the file was made from.
        sheet: the description in the file.
        batches: pairs of batches (B, C, h, w) with the same images: the input of the file, and the input of the model.

    Raises:
        XCiTError: if the outputs differ by more than `LIMITS` allows for int8.
    """
    if sheet.kind is DETECTOR:
        cases = ((given, normalized, torch.ones(4)) for given, normalized in batches)
        return _checked(_compare_detections(run, model, sheet, cases), "int8")
    reference, error, power, sizes, batch_sizes = reference_of(model, sheet), 0.0, 0.0, [], []
    for given, normalized in batches:
        for ours, theirs in zip(run([given]), reference(normalized), strict=True):
            error += (ours.double() - theirs.double()).square().sum().item()
            power += theirs.double().square().sum().item()
        sizes.append((given.shape[2], given.shape[3]))
        batch_sizes.append(len(given))
    value = math.sqrt(error / power) if power else 0.0
    found = Difference(value=value, sizes=tuple(sizes), batch_sizes=tuple(dict.fromkeys(batch_sizes)))
    return _checked(found, "int8")


def reference_of(model: nn.Module, sheet: Sheet) -> Callable[[Tensor], Sequence[Tensor]]:
    """Returns a function that maps a batch to the model's outputs, in the order of the file's outputs."""
    network: Any = model
    features = sheet.facts.features

    @torch.no_grad()
    def answer(images: Tensor) -> Sequence[Tensor]:
        with evaluating(model):
            if features is None:
                return [network(images)]
            found: Sequence[Tensor] = network.extract_feat(
                images, "backbone", out_type=features.out_type, out_indices=features.layers
            )
            return found

    return answer


def normalized(pixels: Tensor, normalization: Normalization | None) -> Tensor:
    """Normalises pixels (..., C, h, w) in 0..1; returns them unchanged if `normalization` is None."""
    if normalization is None:
        return pixels
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalization.mean, normalization.std))
    return (pixels - mean) / std


def _sizes(sheet: Sheet, least_patches: int) -> list[tuple[int, int]]:
    """Returns five image sizes, among them the smallest allowed size, odd sizes and a tall image.

    For a classifier or segmenter, the last size has so many tokens that XCA uses the Gram matrix (see `ops.forms`).
    """
    config = sheet.kind.backbone(sheet.config)
    patch = config.patch_size
    if sheet.kind is DETECTOR:
        return [(64, 96) if least_patches == 1 else (70, 96), (127, 161), (200, 129), (96, 320), (256, 256)]
    many = math.isqrt(math.ceil(GRAM_FROM * config.embed_dim)) + 1
    least = max(least_patches * patch, 64 if sheet.kind is SEGMENTER and least_patches > 1 else 0)
    return [
        (least, least + 3),
        (5 * patch + 1 + least, 8 * patch - 1 + least),
        (11 * patch + least, 6 * patch + least),
        (9 * patch - 3 + least, 9 * patch + least),
        (max(many, 2 * least // patch) * patch, max(many + 1, 2 * least // patch) * patch - 1),
    ]


def _fixed_sizes(sheet: Sheet, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the sizes of the compared images for a file with a fixed size; a detector also gets smaller images."""
    height, width = size
    return [size, (height, 2 * width // 3), (height // 2 + 1, width)] if sheet.kind is DETECTOR else [size] * 2


def _checked(found: Difference, precision: Precision) -> Difference:
    """Returns `found` unchanged if the difference is small enough.

    Raises:
        XCiTError: if the difference is larger than `LIMITS` or `MAX_UNMATCHED` allow for the precision.
    """
    num_unmatched = MAX_UNMATCHED[precision] * max(2 * (found.num_detections or 0), 20)
    if not found.value <= LIMITS[precision] or found.num_unmatched > num_unmatched:
        raise XCiTError(f"the exported graph differs from the model and was not kept: {found.sentence()}")
    return found


def _largest(
    run: Run,
    reference: Callable[[Tensor], Sequence[Tensor]],
    pixels: Tensor,
    normalization: Normalization | None,
) -> float:
    found = []
    for ours, theirs in zip(run([pixels]), reference(normalized(pixels, normalization)), strict=True):
        if ours.shape != theirs.shape:
            raise XCiTError(
                "the exported graph differs from the model and was not kept: for images of shape "
                f"{tuple(pixels.shape)} the output of the graph has shape {tuple(ours.shape)}, and the output of the "
                f"model has shape {tuple(theirs.shape)}"
            )
        found.append(((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item())
    return max(value if math.isfinite(value) else math.inf for value in found)


def _blobs(
    sheet: Sheet, sizes: Sequence[tuple[int, int]], normalization: Normalization | None, draw: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields two images of each size to test a detector.

    Each image consists of smooth blobs: it is a small image of random noise, enlarged. If each pixel were random, all
    regions of an image would look the same to the detector.

    Yields:
        An image (1, C, h, w) as the input of the file, the same image as the input of the model, and its scale (4,).
    """
    for index, (height, width) in enumerate(size for size in sizes for _ in range(2)):
        coarse = torch.rand(1, sheet.channels, height // 16 + 1, width // 16 + 1, generator=draw)
        pixels = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
        yield pixels, normalized(pixels, normalization), torch.full((4,), 1.0 + 0.25 * (index % 2))


def _compare_detections(
    run: Run, model: nn.Module, sheet: Sheet, cases: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> Difference:
    """Compares the detections in each image; `cases` contains the tuples that `_blobs` yields."""
    from xcit.models.detection.roi_heads import MIN_SCORE, Detections

    network: Any = model
    spread = torch.mean if sheet.facts.precision == "int8" else torch.amax
    largest, num_detections, num_unmatched, num_matched, sizes = 0.0, 0, 0, 0, []
    for given, own, scale in cases:
        with torch.no_grad(), evaluating(model):
            theirs = network._search(own[0], scale, MIN_SCORE, padded=sheet.facts.size)
        images, size, _ = inputs_of(sheet, given)
        ours = Detections(*run([images, size, scale]))
        height, width = given.shape[2:]
        sizes.append((height, width))
        pairs = _matched(ours, theirs)
        num_detections += len(theirs.boxes)
        num_unmatched += len(theirs.boxes) + len(ours.boxes) - 2 * len(pairs)
        num_matched += len(pairs)
        if not all(bool(part.isfinite().all()) for part in ours):
            largest = math.inf
        elif len(pairs):
            left, right = pairs.unbind(1)
            differences = (
                (ours.boxes[left] - theirs.boxes[right]).abs().max() / max(height, width),
                (ours.scores[left] - theirs.scores[right]).abs().max(),
                spread((ours.masks[left] - theirs.masks[right]).abs(), dim=(1, 2)).max(),
            )
            largest = max(largest, *(value.item() for value in differences))
    if num_detections and not num_matched:
        largest = math.inf
    return Difference(
        value=largest,
        sizes=tuple(sizes),
        batch_sizes=(1,),
        num_detections=num_detections,
        num_unmatched=num_unmatched,
    )


def _matched(ours: Any, theirs: Any) -> Tensor:
    """Matches detections of the file with detections of the model, and returns their index pairs (n, 2).

    A pair has the same class and an IoU of at least `_MATCHED_IOU`. Pairs with similar scores and boxes are matched
    first, and each detection is in at most one pair.
    """
    from torchvision.ops import box_iou

    pairs: list[tuple[int, int]] = []
    if not len(ours.boxes) or not len(theirs.boxes):
        return torch.zeros(0, 2, dtype=torch.int64)
    same = ours.labels[:, None] == theirs.labels
    distance = (ours.scores[:, None] - theirs.scores).abs() + (1 - box_iou(ours.boxes, theirs.boxes))
    distance = torch.where(same & (box_iou(ours.boxes, theirs.boxes) >= _MATCHED_IOU), distance, math.inf)
    for _ in range(min(distance.shape)):
        best = int(distance.argmin())
        mine, own = divmod(best, distance.shape[1])
        if not math.isfinite(distance[mine, own].item()):
            break
        pairs.append((mine, own))
        distance[mine], distance[:, own] = math.inf, math.inf
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
