"""Computes the class of each pixel from logits, in small parts, so that little memory is needed.

Shapes: `K` classes, `k` rows, `w` pixels per row.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.data.segmentation import Labels
from xcit.models.map_rows import MapRows, ResizedRows, interpolation, rows_of_a_stripe
from xcit.models.segmentation import resize_bilinear
from xcit.models.stripes import spans

CLASSES_AT_ONCE = 16
"""Number of classes whose interpolated logits are in memory at the same time."""

BYTES_A_PIXEL = 4 * 3 * CLASSES_AT_ONCE + 24
"""Memory per pixel of a stripe while its labels are computed, in bytes.

This is the memory for the logits of `CLASSES_AT_ONCE` classes during interpolation, and for the largest logits so far.
"""


class LabelRows:
    """Computes a label map by rows: the label of a pixel is the class with the largest logit.

    As in the published models, logits are interpolated first to the size of the model's input, and then to the size of
    the label map, if the two sizes differ.

    Args:
        logits: the logits, at a quarter of the height and width of the model's input.
        sizes: (height, width) of each interpolation; the last one is the size of the label map.
    """

    def __init__(self, logits: MapRows, *sizes: tuple[int, int]) -> None:
        for size in sizes[:-1]:
            if size != sizes[-1]:
                logits = ResizedRows(logits, size)
        self.logits = logits
        self.height, self.width = sizes[-1]

    def stripes(self, rows_at_once: int | None = None, start: int = 0) -> Iterator[tuple[int, Labels]]:
        """Yields stripes of the label map: the index of the first row, and the labels of the stripe, uint8 (k, width).

        Args:
            rows_at_once: number of rows of logits per stripe; None means the number that fits into the processor's
                cache.
            start: index of the first row of the first stripe.
        """
        rows_at_once = rows_of_a_stripe(self.logits) if rows_at_once is None else rows_at_once
        at_once = max(1, rows_at_once * self.height // self.logits.height)
        for first, last in spans(self.height - start, at_once):
            yield start + first, self.read(start + first, start + last)

    def read(self, start: int, end: int) -> Labels:
        """Returns the labels of the rows from `start` to `end - 1`, uint8 (end - start, width)."""
        before, after, weight = interpolation(start, end, self.logits.height, self.height)
        first = int(before[0])
        rows = self.logits.read(first, int(after[-1]) + 1).permute(2, 0, 1)
        before, after = ((one - first).to(rows.device) for one in (before, after))
        weight = weight.to(rows.device)[:, None]
        best: Tensor | None = None
        labels = torch.zeros(end - start, self.width, dtype=torch.uint8, device=rows.device)
        for index in range(0, len(rows), CLASSES_AT_ONCE):
            some = rows[index : index + CLASSES_AT_ONCE].float().contiguous()
            if self.logits.height != self.height:
                some = torch.lerp(some[:, before], some[:, after], weight)
            if self.logits.width != self.width:
                some = F.interpolate(some[None], (end - start, self.width), mode="bilinear", align_corners=False)[0]
            best, labels = best_so_far(best, labels, some, index)
        return labels.cpu().numpy()


def best_labels(logits: Tensor, size: tuple[int, int]) -> Labels:
    """Resizes logits (K, h, w), a few classes at a time, and returns the class of the largest logit at each pixel."""
    best: Tensor | None = None
    labels = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, len(logits), CLASSES_AT_ONCE):
        some = logits[first : first + CLASSES_AT_ONCE].float()
        if some.shape[1:] != size:
            some = resize_bilinear(some[None], size)[0]
        best, labels = best_so_far(best, labels, some, first)
    return labels.cpu().numpy()


def best_so_far(best: Tensor | None, labels: Tensor, logits: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Updates the largest logits and their classes with the logits (n, k, w) of n more classes.

    `first` is the index of the first of these classes. If classes have equal logits, the lowest index is chosen.
    """
    values, indices = logits.max(dim=0)
    indices = (indices + first).to(torch.uint8)
    if best is None:
        return values, indices
    return torch.maximum(best, values), torch.where(values > best, indices, labels)
