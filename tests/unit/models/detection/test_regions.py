"""Tests the level of a box, and RoIAlign, against plain loops."""

import math

import pytest
import torch
from torch import Tensor

from xcit.models.detection.regions import TensorLevel, region_features, region_levels, window_features


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (55, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (5000, 3)]
)
def test_levels(side: float, level: int) -> None:
    assert region_levels(torch.tensor([[10.0, 20, 10 + side, 20 + side]])).tolist() == [level]
    assert level == min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)


def test_a_box_without_area_reads_the_finest_map() -> None:
    assert region_levels(torch.tensor([[3.0, 4, 3, 90]])).tolist() == [0]


def bilinear(image: Tensor, y: float, x: float) -> float:
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
    lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


def aligned(image: Tensor, box: list[float], size: int, stride: int) -> Tensor:
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    rows, columns = math.ceil((y2 - y1) / size), math.ceil((x2 - x1) / size)
    out = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            values = [
                bilinear(
                    image,
                    y1 + (y2 - y1) / size * (i + (row + 0.5) / rows),
                    x1 + (x2 - x1) / size * (j + (column + 0.5) / columns),
                )
                for row in range(rows)
                for column in range(columns)
            ]
            out[i, j] = sum(values) / len(values)
    return out


def test_features_are_the_mean_of_as_many_samples_as_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 1, 256 // stride, 512 // stride, generator=draw) for stride in (4, 8, 16, 32, 64)]
    boxes: list[list[list[float]]] = [
        [[3.3, 5.1, 40.2, 33.0]],
        [[10.0, 20, 300, 240], [0, 0, 511, 255], [100, 50, 190.5, 230]],
    ]
    levels = [[0], [2, 2, 1]]
    found = region_features(maps, [torch.tensor(own) for own in boxes], 3)
    expected = [
        aligned(maps[level][image, 0], box, 3, 4 * 2**level)
        for image in range(2)
        for box, level in zip(boxes[image], levels[image], strict=True)
    ]
    torch.testing.assert_close(found[:, 0], torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_no_box_reads_nothing_and_every_map_has_a_gradient() -> None:
    maps = [torch.randn(1, 2, 32 // stride, 32 // stride, requires_grad=True) for stride in (4, 8, 16, 32)]
    region_features(maps, [torch.zeros(0, 4)], 7).sum().backward()
    assert all(level.grad is not None and not level.grad.any() for level in maps)


def boxes_of_every_kind(height: int, width: int, count: int) -> Tensor:
    """Returns random boxes of all sizes, and special boxes: at the edges, without area, with sides of whole cells."""
    draw = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, 2, generator=draw).pow(2) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    special = [[0, 0, width, height], [3, 4, 3, 9], [5, 6, 61, 34], [width - 1, height - 1, width, height], [0] * 4]
    return torch.cat([boxes, torch.tensor(special, dtype=torch.float32)])


@pytest.mark.parametrize("size", [7, 14])
def test_products_of_matrices_are_torchvisions_operator(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    # Maps with one row less than the image, as if the patch did not divide the image.
    maps = [torch.randn(2, 5, 480 // stride - 1, 640 // stride, generator=draw) for stride in (4, 8, 16, 32)]
    boxes = [boxes_of_every_kind(480, 640, 300), boxes_of_every_kind(300, 200, 9)]
    found = region_features(maps, boxes, size)
    with torch.enable_grad():
        by_operator = region_features([level.clone().requires_grad_() for level in maps], boxes, size)
    assert by_operator.requires_grad and not found.requires_grad
    torch.testing.assert_close(found, by_operator.detach(), rtol=1e-5, atol=2e-6)
    assert region_features(maps, [torch.zeros(0, 4), torch.zeros(0, 4)], size).shape == (0, 5, size, size)


def test_a_box_larger_than_what_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [TensorLevel(torch.randn(3, 480 // stride, 640 // stride)) for stride in (4, 8, 16, 32)]
    boxes = boxes_of_every_kind(480, 640, 40)
    whole = window_features(levels, boxes, 7)
    monkeypatch.setattr("xcit.models.detection.regions._NUMBERS_AT_ONCE", 1)
    monkeypatch.setattr("xcit.models.detection.regions._BOXES_AT_ONCE", 3)
    torch.testing.assert_close(window_features(levels, boxes, 7), whole, rtol=1e-5, atol=1e-6)
