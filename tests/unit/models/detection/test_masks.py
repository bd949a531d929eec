"""Masks pasted and cut out, against loops."""

import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.models.detection.masks import mask_targets, paste_mask, paste_masks


def pasted(mask: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """Returns a mask pasted into the whole image, sampled at the centre of each pixel."""
    x1, y1, x2, y2 = box
    y = ((torch.arange(size[0]) + 0.5) - y1) / (y2 - y1) * 2 - 1
    x = ((torch.arange(size[1]) + 0.5) - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x.expand(size[0], -1), y[:, None].expand(-1, size[1])], dim=-1)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def test_a_part_of_the_image_is_all_that_a_mask_reaches() -> None:
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 28, 28, generator=draw)
    boxes = [[3.4, 5.5, 40.1, 33.0], [0.0, 0.0, 50.0, 60.0], [-4.0, 20.2, 9.9, 70.0], [30.0, 3.0, 30.7, 50.0]]
    found = paste_masks(masks, torch.tensor(boxes), (60, 50))
    assert found.shape == (4, 1, 60, 50)
    for index, box in enumerate(boxes):
        torch.testing.assert_close(found[index, 0], pasted(masks[index], box, (60, 50)), atol=1e-4, rtol=0)
    top, left, part = paste_mask(masks[0], torch.tensor(boxes[0]), (60, 50))
    assert (top, left, *part.shape) == (4, 2, 34 - 4, 42 - 2)


def test_a_full_mask_covers_its_box() -> None:
    found = paste_masks(torch.ones(1, 28, 28), torch.tensor([[10.0, 5, 38, 33]]), (50, 50))[0, 0]
    expected = torch.zeros(50, 50)
    expected[5:33, 10:38] = 1  # one mask pixel is one image pixel
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_boxes_without_extent_or_outside_break_nothing() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 20], [5.5, 5.5, 5.5, 5.5], [80, 90, 95, 99]])
    found = paste_masks(torch.ones(3, 28, 28), boxes, (30, 30))
    assert found.isfinite().all()
    assert not found[2].any()
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (30, 30)).shape == (0, 1, 30, 30)


def test_targets_are_one_where_half_is_covered() -> None:
    masks = torch.zeros(2, 40, 40, dtype=torch.uint8)
    masks[0, 10:20, :] = 1
    masks[1, :, :15] = 1
    boxes = torch.tensor([[0.0, 0, 40, 40], [0, 0, 40, 40], [10, 10, 20, 20]])
    found = mask_targets(masks, boxes, torch.tensor([0, 1, 1]), 4)
    rows, columns = torch.zeros(4, 4), torch.zeros(4, 4)
    rows[1] = 1
    columns[:, 0] = 1
    columns[:, 1] = 1  # pixels 10 to 20; the object has 5 of them
    half = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4)
    assert torch.equal(found, torch.stack([rows, columns, half]))


def test_targets_of_no_box_and_of_boxes_beyond_the_mask() -> None:
    masks = torch.ones(1, 20, 30, dtype=torch.uint8)
    assert mask_targets(masks, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)
    found = mask_targets(masks, torch.tensor([[-5.0, -5, 60, 60]]), torch.tensor([0]), 28)
    assert found.all()
