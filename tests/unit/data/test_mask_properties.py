"""Tests masks and label maps of any shape: packing, unpacking, measuring and counting agree with the pixels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xcit.data.coco_masks import (
    MaskPart,
    box_polygon,
    decode_mask,
    encode_mask,
    encode_parts,
    mask_area,
    mask_problem,
    to_rle,
)
from xcit.data.segmentation import IGNORED
from xcit.training.tasks.segmentation import count_pixels, report_of

QUICK = settings(max_examples=80, deadline=None, derandomize=True)

sizes = st.tuples(st.integers(1, 24), st.integers(1, 24))
masks = sizes.flatmap(lambda size: arrays(np.uint8, size, elements=st.integers(0, 1)))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Returns the lengths of runs of 0 and 1 down the columns; the first run is of 0."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return [int(count) for count in np.diff([0, *edges, flat.size])]


@QUICK
@given(masks)
def test_a_mask_comes_back_from_run_lengths(mask: np.ndarray) -> None:
    size = mask.shape
    for rle in (encode_mask(mask), {"size": list(size), "counts": run_lengths(mask)}):
        assert mask_problem(rle, size) == ""
        assert np.array_equal(decode_mask(rle, size), mask)
        assert mask_area(rle, size) == mask.sum()
        assert to_rle(rle, size)["size"] == list(size)
    assert mask_problem(encode_mask(mask), (size[0] + 1, size[1])) != ""


@QUICK
@given(masks, st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_a_part_of_an_image_is_packed_as_the_image_is(
    mask: np.ndarray, above: int, below: int, left: int, right: int
) -> None:
    whole = np.pad(mask, ((above, below), (left, right)))
    assert encode_parts([MaskPart(above, left, mask)], whole.shape) == encode_mask(whole)


@QUICK
@given(sizes, st.integers(0, 23), st.integers(0, 23), st.integers(1, 24), st.integers(1, 24))
def test_a_box_covers_its_pixels(size: tuple[int, int], x: int, y: int, width: int, height: int) -> None:
    expected = np.zeros(size, np.uint8)
    expected[y : y + height, x : x + width] = 1
    polygon = box_polygon((x, y, width, height))
    assert mask_problem(polygon, size) == ""
    assert np.array_equal(decode_mask(polygon, size), expected)


@QUICK
@given(st.data(), sizes, st.integers(1, 6))
def test_pixels_are_counted_by_true_and_predicted_class(
    data: st.DataObject, size: tuple[int, int], num_classes: int
) -> None:
    classes = st.integers(0, num_classes - 1)
    labels = data.draw(arrays(np.uint8, size, elements=classes | st.just(IGNORED)))
    predicted = data.draw(arrays(np.uint8, size, elements=classes))
    confusion = count_pixels(labels, predicted, num_classes)
    expected = [
        [int(((labels == true) & (predicted == guess)).sum()) for guess in range(num_classes)]
        for true in range(num_classes)
    ]
    assert confusion.tolist() == expected
    report = report_of(confusion, num_images=1)
    right = int(((labels == predicted) & (labels != IGNORED)).sum())
    if total := int((labels != IGNORED).sum()):
        assert abs(report.aacc - 100 * right / total) < 1e-6
    assert all(np.isnan(one) or 0 <= one <= 100 for one in report.iou)
