"""Tests anchors: not rounded, at fixed strides, in the published order."""

import pytest
import torch

from xcit.models.detection.anchors import ANCHOR_STRIDES, all_anchors, anchors_at, base_anchors, within


def test_sides_are_not_rounded() -> None:
    sides = [(x2 - x1, y2 - y1) for x1, y1, x2, y2 in base_anchors(4, 8.0).tolist()]
    assert sides[0] == pytest.approx((45.2548, 22.6274), abs=1e-4)
    assert sides[1] == (32, 32)
    assert sides[2] == pytest.approx((22.6274, 45.2548), abs=1e-4)


@pytest.mark.parametrize(("stride", "side"), list(zip(ANCHOR_STRIDES, (32, 64, 128, 256, 512), strict=True)))
def test_each_map_has_its_size(stride: int, side: int) -> None:
    assert base_anchors(stride, 8.0)[1].tolist() == [-side / 2, -side / 2, side / 2, side / 2]


def test_they_stand_at_the_upper_left_corner_of_a_place_row_by_row() -> None:
    found = anchors_at(torch.arange(2 * 5 * 3), map_width=5, stride=16, scale=8.0)
    for y in range(2):
        for x in range(5):
            for ratio in range(3):
                expected = base_anchors(16, 8.0)[ratio] + torch.tensor([x * 16, y * 16, x * 16, y * 16])
                assert torch.equal(found[(y * 5 + x) * 3 + ratio], expected)


def test_the_last_map_keeps_its_stride_of_64() -> None:
    # 800 pixels give 25 positions at stride 32, and 13 on the next map. Its stride is 64, not 800 // 13 = 61.
    anchors = all_anchors([(200, 200), (100, 100), (50, 50), (25, 25), (13, 13)], 8.0, torch.device("cpu"))
    centre = (anchors[-1, :2] + anchors[-1, 2:]) / 2
    assert len(anchors) == 3 * sum(side**2 for side in (200, 100, 50, 25, 13))
    torch.testing.assert_close(centre, torch.full((2,), 12 * 64.0))


def test_places_in_the_padding_of_the_batch_are_outside() -> None:
    sizes = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    inside = within(sizes, (64, 96), torch.device("cpu"))
    anchors = all_anchors(sizes, 8.0, torch.device("cpu"))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert torch.equal(inside, (centres[:, 0] < 96 - 1e-3) & (centres[:, 1] < 64 - 1e-3))
    assert within(sizes, (96, 128), torch.device("cpu")).all()
