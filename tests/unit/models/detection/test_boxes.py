"""Tests the coding of boxes as steps, and non-maximum suppression, against their formulas in plain code."""

import math

import numpy as np
import pytest
import torch

from xcit.models.detection.boxes import clip_boxes, decode_boxes, encode_boxes, nms_by_class

STD = (0.1, 0.1, 0.2, 0.2)


def decoded(box: list[float], step: list[float]) -> list[float]:
    """Returns the box by the published formula, in Python's floats."""
    x1, y1, x2, y2 = box
    dx, dy, dw, dh = (value * std for value, std in zip(step, STD, strict=True))
    bound = abs(math.log(16 / 1000))
    width = (x2 - x1) * math.exp(min(max(dw, -bound), bound))
    height = (y2 - y1) * math.exp(min(max(dh, -bound), bound))
    x, y = (x1 + x2) / 2 + (x2 - x1) * dx, (y1 + y2) / 2 + (y2 - y1) * dy
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("size_step", [0.0, 3.0, 25.0, -25.0])
def test_steps_are_clamped_at_both_ends_after_they_are_scaled(size_step: float) -> None:
    box, step = [1000.0, 2000.0, 1100.0, 2050.0], [0.5, -2.0, size_step, size_step]
    found = decode_boxes(torch.tensor([box]), torch.tensor([step]), STD, (10**7, 10**7))
    torch.testing.assert_close(found[0], torch.tensor(decoded(box, step)).clamp(min=0))


def test_a_shrinking_step_stops_where_torchvision_goes_on() -> None:
    found = decode_boxes(torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, -50, -50]]), STD, (1000, 1000))
    assert (found[0, 2] - found[0, 0]).item() == pytest.approx(16)


def test_decoding_undoes_encoding() -> None:
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 50, 2, generator=draw) * 100
    boxes, targets = torch.cat([corners, corners + 5 + 50 * torch.rand(2, 50, 2, generator=draw)], dim=2)
    torch.testing.assert_close(decode_boxes(boxes, encode_boxes(boxes, targets, STD), STD, (300, 300)), targets)


def test_boxes_of_many_classes_are_decoded_at_once_and_end_at_the_edge_without_padding() -> None:
    found = decode_boxes(torch.tensor([[10.0, 10, 30, 30]]), torch.zeros(1, 3, 4), STD, (25, 20))
    assert found.shape == (1, 3, 4)
    assert found[0, 2].tolist() == [10, 10, 20, 25]
    assert clip_boxes(torch.tensor([[-3.0, -4, 50, 60]]), (25, 20)).tolist() == [[0, 0, 20, 25]]


def brute_force(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> list[int]:
    left: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        x1, y1, x2, y2 = boxes[index]
        for other in left:
            if classes[other] != classes[index]:
                continue
            a1, b1, a2, b2 = boxes[other]
            common = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            if common / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - common) > threshold:
                break
        else:
            left.append(int(index))
    return left


def test_classes_do_not_suppress_one_another() -> None:
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(5, 40, (200, 2))], axis=1).astype(np.float32)
    scores, classes = draw.permutation(200).astype(np.float32), draw.integers(0, 3, 200)
    found = nms_by_class(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.5)
    assert found.tolist() == brute_force(boxes, scores, classes, 0.5)


def test_the_offset_is_the_largest_coordinate_and_one() -> None:
    # Above 2**24, float32 has only even numbers. The offset of class 1 is that large, so the difference of 0.25 is
    # lost, and the two boxes become equal.
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.25, 0, 2.25, 2], [0, 0, 2.0**24, 2]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms_by_class(boxes, scores, torch.tensor([0, 0, 0]), 0.8).tolist() == [0, 1, 2]
    assert nms_by_class(boxes, scores, torch.tensor([1, 1, 1]), 0.8).tolist() == [0, 2]


def test_many_boxes_are_suppressed_class_by_class() -> None:
    draw = torch.Generator().manual_seed(0)
    corners = torch.rand(11_000, 2, generator=draw) * 300
    boxes = torch.cat([corners, corners + 20], dim=1)
    scores, classes = torch.rand(11_000, generator=draw), torch.arange(11_000) % 4
    found = nms_by_class(boxes, scores, classes, 0.3)
    assert scores[found].diff().max() <= 0
    for number in range(4):
        own = (classes == number).nonzero().squeeze(1)
        alone = own[nms_by_class(boxes[own], scores[own], torch.full_like(own, number), 0.3)]
        assert set(found[classes[found] == number].tolist()) == set(alone.tolist())


def test_no_box_is_no_box() -> None:
    assert nms_by_class(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.5).shape == (0,)
