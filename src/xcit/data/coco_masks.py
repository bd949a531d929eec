"""Encodes, decodes and checks COCO's masks, which are polygons or run-length encodings (RLE).

RLE reads a mask column by column, from left to right, and stores the lengths of the runs of equal pixels. The first run
has pixels of 0, the second run has pixels of 1, and so on in turn. The lengths are called counts. They are a list of
numbers or, in packed RLE, a text.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from xcit.extras import imported

CocoMask: TypeAlias = list[list[float]] | dict[str, Any]
"""A list of polygons [x1, y1, x2, y2, ...]; or RLE, `{"size": [height, width], "counts": list or packed text}`."""


FARTHEST = 2**18
"""The largest accepted absolute value of a polygon's coordinates, and of an image's height and width, in pixels."""

_LONGEST_OUTLINE = 5_000_000
"""The largest accepted number of pixels on the outline of a polygon.

COCO's code stores five points per pixel of the outline, so a longer outline would need too much memory.
"""

_LETTERS_A_COUNT = 7
"""The largest number of characters of one count in packed RLE: a count has 32 bits, and a character stores 5 bits."""


def mask_problem(segmentation: object, size: tuple[int, int]) -> str:
    """Returns the reason why a mask is invalid for an image of `size` (height, width); "" if the mask is valid."""
    if isinstance(segmentation, list):
        return _polygons_problem(segmentation)
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, size)
    return f"neither polygons nor RLE, but {type(segmentation).__name__}"


def decode_mask(segmentation: CocoMask, size: tuple[int, int]) -> np.ndarray:
    """Decodes a mask to uint8 (height, width), with values 0 and 1; `size` is (height, width)."""
    mask: np.ndarray = _api().decode(to_rle(segmentation, size))
    return mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask (height, width) as packed RLE; all nonzero values count as 1."""
    rle = _api().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])}


class MaskPart(NamedTuple):
    """A mask of a rectangular part of an image; `top` and `left` are the part's first row and first column.

    All nonzero values of `mask` count as 1.
    """

    top: int
    left: int
    mask: np.ndarray


def encode_parts(parts: Iterable[MaskPart], size: tuple[int, int]) -> dict[str, Any]:
    """Encodes parts of a mask as packed RLE of the whole mask; `size` is the (height, width) of the whole mask.

    Outside the parts the mask is 0. The parts must not overlap. They are read one at a time, so only one part has to
    be in memory. The time depends on the size of the parts, not on the size of the image.
    """
    height, width = size
    found = [np.zeros(0, np.int64)]
    for top, left, mask in parts:
        framed = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)
        framed[:, 1:-1] = (mask != 0).T
        columns, rows = np.nonzero(np.diff(framed, axis=1))
        found.append((left + columns) * height + top + rows)
    # An edge is the position, counted down the columns, at which a run of ones begins or ends. If a run begins where
    # another run ends, the edge occurs twice. Both occurrences are removed, which joins the two runs.
    edges, times = np.unique(np.concatenate(found), return_counts=True)
    edges = np.union1d(edges[times == 1], [height * width])
    counts = np.diff(edges, prepend=0).tolist()
    rle = _api().frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": _text(rle["counts"])}


def decode_part(rle: dict[str, Any]) -> MaskPart:
    """Decodes packed RLE to a bool mask of the object's bounding box; an empty mask gives a part of 0 x 0 pixels.

    Time and memory depend on the size of the box, not on the size of the image.
    """
    length = int(rle["size"][0])
    edges = np.cumsum(_unpacked(rle["counts"]), dtype=np.int64)
    first, last = edges[: len(edges) // 2 * 2 : 2], edges[1::2] - 1
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        return MaskPart(0, 0, np.zeros((0, 0), np.bool_))
    left, right = int(first[0] // length), int(last[-1] // length) + 1
    if np.any(first // length != last // length):  # a run continues in the next column, so the box includes all rows
        top, bottom = 0, length
    else:
        top, bottom = int((first % length).min()), int((last % length).max()) + 1
    height, width = bottom - top, right - left
    first, last = ((pixels // length - left) * height + pixels % length - top for pixels in (first, last))
    changes = np.zeros(width * height + 1, np.int8)
    changes[first] = 1
    changes[last + 1] -= 1
    inside = np.cumsum(changes[:-1], dtype=np.int8).reshape(width, height)
    return MaskPart(top, left, inside.T.astype(np.bool_))


def mask_area(segmentation: CocoMask, size: tuple[int, int]) -> float:
    """Returns the number of pixels that belong to a mask; `size` is the image's (height, width)."""
    return float(_api().area(to_rle(segmentation, size)))


def to_rle(segmentation: CocoMask, size: tuple[int, int]) -> dict[str, Any]:
    """Converts a mask of any form to packed RLE; `size` is the image's (height, width)."""
    api, (height, width) = _api(), size
    if isinstance(segmentation, list):
        rle: dict[str, Any] = api.merge(api.frPyObjects(segmentation, height, width))
    else:
        # The size stated in the file is not used, because its numbers may be floats.
        rle = {"size": [height, width], "counts": segmentation["counts"]}
        if isinstance(rle["counts"], list):
            rle = api.frPyObjects(rle, height, width)
    return rle


def box_polygon(box: tuple[float, ...]) -> CocoMask:
    """Returns the outline of a box (x, y, width, height) as a polygon, with coordinates clipped to ±`FARTHEST`."""
    x, y, width, height = box
    left, top, right, bottom = (min(max(value, -FARTHEST), FARTHEST) for value in (x, y, x + width, y + height))
    return [[left, top, right, top, right, bottom, left, bottom]]


def _api() -> Any:
    """Returns the module of COCO's mask functions, which are written in C.

    Raises:
        XCiTError: if the package `faster-coco-eval` is not installed.
    """
    return imported("faster_coco_eval", "a mask of COCO's").mask


def _polygons_problem(polygons: list[object]) -> str:
    for polygon in polygons:
        if not isinstance(polygon, list):
            return "a polygon is not a list of numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers: it needs three or more points of two numbers each"
        # The values are compared with infinity, because `math.isfinite` raises an error for integers that are too large
        # for a float.
        if not all(isinstance(value, int | float) and float("-inf") < value < float("inf") for value in polygon):
            return "a polygon with a value that is not a finite number"
        if max(polygon) > FARTHEST or min(polygon) < -FARTHEST:
            return "a polygon with a point that is far from any image"
        # The first condition is cheap, and it is false for nearly all polygons. So the outline is rarely measured.
        if len(polygon) * (max(polygon) - min(polygon)) > _LONGEST_OUTLINE and _outline(polygon) > _LONGEST_OUTLINE:
            return "a polygon with an outline that is too long"
    return ""


def _outline(polygon: list[float]) -> float:
    """Returns the number of pixels on the outline of a polygon."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    sides = pairwise([*points, points[0]])
    return float(sum(max(abs(x1 - x0), abs(y1 - y0)) for (x0, y0), (x1, y1) in sides))


def _rle_problem(rle: dict[str, Any], size: tuple[int, int]) -> str:
    if rle.get("size") != list(size):
        return f"its size is {rle.get('size')!r}, but the image's size is [{size[0]}, {size[1]}]"
    counts = rle.get("counts")
    if isinstance(counts, str):
        try:
            counts = _unpacked(counts)
        except (IndexError, ValueError):
            return "its packed counts are cut off or invalid"
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return "its counts are not numbers of pixels"
    if len(counts) > 2 * size[0] * size[1] + 1:
        return f"{len(counts):,} runs are more than the image can have"
    if sum(counts) != size[0] * size[1]:
        return f"its counts add up to {sum(counts)} pixels, but the image has {size[0] * size[1]}"
    return ""


def _unpacked(text: str) -> list[int]:
    """Decodes the text of packed RLE to a list of counts.

    The character code of a letter minus the character code of "0" is a number of six bits. The lower five bits are a
    part of a count; the least significant part comes first. The sixth bit is 1 if more letters of the same count
    follow. From the fourth count on, the text does not contain the count itself. It contains the count minus the count
    two positions before.

    Raises:
        IndexError: if the last count is cut off.
        ValueError: if a letter is invalid, or a count has too many letters.
    """
    counts: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[place]) - 48
            if not 0 <= bits < 64 or shift >= 5 * _LETTERS_A_COUNT:
                raise ValueError(text[place])
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 5
            if not more and bits & 16:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
