"""Tests masks of COCO files: they are read as by pycocotools, and refused if they are malformed."""

import re

import numpy as np
import pytest
from pycocotools import mask as reference

from xcit.data.coco_masks import (
    MaskPart,
    box_polygon,
    decode_mask,
    decode_part,
    encode_mask,
    encode_parts,
    mask_area,
    mask_problem,
)

SIZE = (30, 40)
MASK = (np.random.default_rng(0).random(SIZE) < 0.3).astype(np.uint8)
PACKED = reference.encode(np.asfortranarray(MASK))
PACKED["counts"] = PACKED["counts"].decode()


def run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


@pytest.mark.parametrize("rle", [PACKED, {"size": list(SIZE), "counts": run_lengths(MASK)}], ids=["packed", "counts"])
def test_run_lengths(rle: dict[str, object]) -> None:
    assert mask_problem(rle, SIZE) == ""
    assert np.array_equal(decode_mask(rle, SIZE), MASK)
    assert mask_area(rle, SIZE) == MASK.sum()


def test_long_runs_are_packed_in_several_letters() -> None:
    for mask in (np.zeros((900, 1200), np.uint8), np.ones((900, 1200), np.uint8), np.eye(900, 1200, dtype=np.uint8)):
        rle = encode_mask(mask)
        assert mask_problem(rle, (900, 1200)) == ""
        assert np.array_equal(decode_mask(rle, (900, 1200)), mask)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("top", "left", "height", "width"), [
    (4, 6, 7, 5), (0, 0, 20, 30), (0, 3, 20, 4), (19, 29, 1, 1), (2, 25, 18, 5), (0, 0, 6, 30), (5, 5, 0, 0),
])  # fmt: skip
def test_a_part_is_packed_as_the_whole_is(share: float, top: int, left: int, height: int, width: int) -> None:
    part = np.random.default_rng(1).random((height, width)) < share
    whole = np.zeros((20, 30), np.uint8)
    whole[top : top + height, left : left + width] = part
    expected = encode_mask(whole)
    assert encode_parts([MaskPart(top, left, part)], (20, 30)) == expected
    pieces = [MaskPart(top, left + start, part[:, start : start + 2]) for start in range(0, width, 2)]
    assert encode_parts(pieces, (20, 30)) == expected
    found, again = decode_part(expected), np.zeros((20, 30), np.uint8)
    rows, columns = (slice(start, start + side) for start, side in zip(found[:2], found.mask.shape, strict=True))
    again[rows, columns] = found.mask
    assert np.array_equal(again, whole)
    assert found.mask.size <= part.size or found.mask.shape[0] == 20


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # NumPy 2 warns about pycocotools
def test_polygons_are_joined() -> None:
    polygons: list[list[float]] = [[2.5, 3, 20, 4.2, 10, 25], [25, 5, 38, 5, 38, 28, 25, 28]]
    assert mask_problem(polygons, SIZE) == ""
    expected = reference.decode(reference.merge(reference.frPyObjects(polygons, *SIZE)))
    assert np.array_equal(decode_mask(polygons, SIZE), expected)
    assert decode_mask(box_polygon((10, 5, 4, 3)), SIZE).sum() == 12


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("mask.png", "neither polygons nor RLE, but str"),
        ([[1, 2, 3, 4]], "a polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not a finite number"),
        ([[1, 2, 3, 4, 5, None]], "not a finite number"),
        ([1, 2, 3, 4, 5, 6], "is not a list"),
        ({"size": [40, 30], "counts": [1200]}, r"its size is \[40, 30\], but the image's size is \[30, 40\]"),
        ({"counts": [1200]}, "its size is None"),
        ({"size": [30, 40], "counts": [100, 200]}, "add up to 300 pixels, but the image has 1200"),
        ({"size": [30, 40], "counts": [1300, -100]}, "not numbers of pixels"),
        ({"size": [30, 40]}, "not numbers of pixels"),
        ({"size": [30, 40], "counts": PACKED["counts"][:-3]}, "add up to|cut off"),
        ({"size": [30, 40], "counts": "oh no"}, "cut off or invalid"),
        ({"size": [30, 40], "counts": ""}, "add up to 0"),
    ],
)
def test_malformed_masks_are_told(segmentation: object, words: str) -> None:
    assert re.search(words, mask_problem(segmentation, SIZE))
