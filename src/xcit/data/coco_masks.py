"""COCO's masks: polygons, and run lengths (RLE) down the columns, as lists of numbers or packed in text."""

from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from xcit.extras import imported

CocoMask: TypeAlias = list[list[float]] | dict[str, Any]
"""Polygons x1, y1, x2, y2, ...; or `{"size": [height, width], "counts": [...] or text}`."""


FARTHEST = 2**18
"""Pixels from an image's corner to the farthest point of a polygon, and of an image's longest side."""

_LONGEST_OUTLINE = 5_000_000
"""Pixels that the outlines of a mask may go over: COCO's code keeps five points for each of them."""

_LETTERS_A_COUNT = 7
"""Letters of the longest count in packed RLE: five bits each, of the 32 that COCO's code takes."""


def mask_problem(segmentation: object, size: tuple[int, int]) -> str:
    """What is wrong with a mask of an image of this height and width, "" if nothing is."""
    if isinstance(segmentation, list):
        return _polygons_problem(segmentation)
    if isinstance(segmentation, dict):
        return _rle_problem(segmentation, size)
    return f"neither polygons nor RLE, but {type(segmentation).__name__}"


def decode_mask(segmentation: CocoMask, size: tuple[int, int]) -> np.ndarray:
    """The mask (height, width) uint8, 0 or 1."""
    mask: np.ndarray = _api().decode(to_rle(segmentation, size))
    return mask


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (height, width), 0 or not, as packed RLE whose counts are text."""
    rle = _api().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": _text(rle["counts"])}


def encode_part(part: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Like `encode_mask`, of a mask of this height and width that is 0 but for a part whose corner is at top, left.

    The time is the part's, not the image's.
    """
    height, width = size
    framed = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    framed[:, 1:-1] = (part != 0).T
    columns, rows = np.nonzero(np.diff(framed, axis=1))
    # Where runs begin and end, down the image's columns; a run to the last row ends where one from the first begins,
    # and then both are one.
    edges, times = np.unique((left + columns) * height + top + rows, return_counts=True)
    edges = np.union1d(edges[times == 1], [height * width])
    counts = np.diff(edges, prepend=0).tolist()
    rle = _api().frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": _text(rle["counts"])}


def mask_area(segmentation: CocoMask, size: tuple[int, int]) -> float:
    """Pixels of a mask."""
    return float(_api().area(to_rle(segmentation, size)))


def to_rle(segmentation: CocoMask, size: tuple[int, int]) -> dict[str, Any]:
    """Any mask as packed RLE."""
    api, (height, width) = _api(), size
    if isinstance(segmentation, list):
        rle: dict[str, Any] = api.merge(api.frPyObjects(segmentation, height, width))
    else:
        # The file's own size may be spelled in floats.
        rle = {"size": [height, width], "counts": segmentation["counts"]}
        if isinstance(rle["counts"], list):
            rle = api.frPyObjects(rle, height, width)
    return rle


def box_polygon(box: tuple[float, ...]) -> CocoMask:
    """The outline of a box x, y, width, height; of a box beyond all images, that of its part nearby."""
    x, y, width, height = box
    left, top, right, bottom = (min(max(value, -FARTHEST), FARTHEST) for value in (x, y, x + width, y + height))
    return [[left, top, right, top, right, bottom, left, bottom]]


def _api() -> Any:
    """COCO's mask functions in C.

    Raises:
        XCiTError: if the package is not installed.
    """
    return imported("faster_coco_eval", "a mask of COCO's").mask


def _polygons_problem(polygons: list[object]) -> str:
    for polygon in polygons:
        if not isinstance(polygon, list):
            return "a polygon is no list of numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers, where three points or more need two each"
        # Compared, for `math.isfinite` fails at whole numbers beyond all floats.
        if not all(isinstance(value, int | float) and float("-inf") < value < float("inf") for value in polygon):
            return "a polygon with something that is no finite number"
        if max(polygon) > FARTHEST or min(polygon) < -FARTHEST:
            return "a polygon with a point that is far from any image"
        # Few come near the limit: only of these all sides are measured.
        if len(polygon) * (max(polygon) - min(polygon)) > _LONGEST_OUTLINE and _outline(polygon) > _LONGEST_OUTLINE:
            return "a polygon whose outline is longer than any object's"
    return ""


def _outline(polygon: list[float]) -> float:
    """Pixels that the outline of a polygon goes over."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    sides = pairwise([*points, points[0]])
    return float(sum(max(abs(x1 - x0), abs(y1 - y0)) for (x0, y0), (x1, y1) in sides))


def _rle_problem(rle: dict[str, Any], size: tuple[int, int]) -> str:
    if rle.get("size") != list(size):
        return f"its size is {rle.get('size')!r}, the image's [{size[0]}, {size[1]}]"
    counts = rle.get("counts")
    if isinstance(counts, str):
        try:
            counts = _unpacked(counts)
        except (IndexError, ValueError):
            return "its packed counts are cut off, or no RLE"
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return "its counts are no numbers of pixels"
    if len(counts) > 2 * size[0] * size[1] + 1:
        return f"{len(counts):,} runs, more than the image has pixels"
    if sum(counts) != size[0] * size[1]:
        return f"its counts add up to {sum(counts)} pixels, the image has {size[0] * size[1]}"
    return ""


def _unpacked(text: str) -> list[int]:
    """The counts of packed RLE: five bits a letter from "0" on, the sixth says that more follow; from the fourth count
    on the difference to the one two before.

    Raises:
        IndexError: if the last count is cut off.
        ValueError: if a letter is none of theirs, or a count has more letters than there are.
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
