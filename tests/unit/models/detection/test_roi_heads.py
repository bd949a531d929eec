"""Tests the second stage of the detector: the selection of detections, and the losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.models.detection import roi_heads
from xcit.models.detection.boxes import encode_boxes, nms_by_class
from xcit.models.detection.masks import mask_targets
from xcit.models.detection.regions import region_features
from xcit.models.detection.roi_heads import STD, Objects, RoIHeads

NO_SCALE = torch.ones(4)


@pytest.fixture
def heads() -> RoIHeads:
    torch.manual_seed(0)
    return RoIHeads(channels=4, box_features=8, num_classes=3).eval()


def logits_of(*scores: list[float]) -> Tensor:
    """Returns logits with a softmax that gives these scores of three classes; the background gets the rest."""
    return torch.tensor([[*row, 1 - sum(row)] for row in scores]).log()


def select(
    heads: RoIHeads, logits: Tensor, proposals: Tensor, scale: Tensor = NO_SCALE
) -> tuple[Tensor, Tensor, Tensor]:
    return heads._select(logits, torch.zeros(len(logits), 3, 4), proposals, (100, 100), scale, roi_heads.MIN_SCORE)


def test_background_is_last_and_scores_are_above_a_twentieth(heads: RoIHeads) -> None:
    proposals = torch.tensor([[0.0, 0, 10, 10], [50, 50, 90, 90]])
    boxes, labels, scores = select(heads, logits_of([0.6, 0.04, 0.3], [0.01, 0.2, 0.01]), proposals)
    assert labels.tolist() == [0, 2, 1]
    assert scores.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert boxes.tolist() == proposals[[0, 0, 1]].tolist()


def test_boxes_are_suppressed_in_pixels_of_the_image_as_it_was_given(
    heads: RoIHeads, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def watched(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
        seen.append(boxes)
        return nms_by_class(boxes, scores, classes, iou)

    monkeypatch.setattr(roi_heads, "nms_by_class", watched)
    proposals = torch.tensor([[10.0, 10, 50, 50], [12.0, 10, 52, 50]])
    boxes, _, _ = select(heads, logits_of([0.9, 0, 0], [0.8, 0, 0]), proposals, torch.tensor([2.0, 1, 2, 1]))
    assert boxes.tolist() == [[5, 10, 25, 50]]
    assert seen[0].tolist() == [[5, 10, 25, 50], [6, 10, 26, 50]]


def test_boxes_end_at_the_edge_of_what_the_network_sees(heads: RoIHeads) -> None:
    wide = torch.zeros(1, 3, 4)
    wide[..., 2] = 99
    proposals, scale = torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([2.0, 2, 2, 2])
    boxes, _, _ = heads._select(logits_of([0.9, 0, 0]), wide, proposals, (100, 100), scale, 0.05)
    assert boxes[0].tolist() == [0, 5, 50, 25]


def test_small_boxes_stay_and_those_ending_at_the_upper_edge_go(heads: RoIHeads) -> None:
    proposals = torch.tensor([[5.0, 5, 5, 5], [5, 0, 9, 0]])
    boxes, _, _ = select(heads, logits_of([0.9, 0, 0], [0.9, 0, 0]), proposals)
    assert boxes.tolist() == [[5, 5, 5, 5]]


def test_a_hundred_at_most(heads: RoIHeads) -> None:
    corners = torch.arange(150.0)[:, None].expand(-1, 2) * 10
    proposals = torch.cat([corners, corners + 5], dim=1)
    found = heads._select(
        logits_of(*[[0.5, 0.2, 0.2]] * 150), torch.zeros(150, 3, 4), proposals, (9999, 9999), NO_SCALE, 0.05
    )
    assert len(found[0]) == 100
    assert (found[2].diff() <= 0).all()


def test_masks_are_of_the_final_boxes_at_the_networks_scale_and_of_their_class(heads: RoIHeads) -> None:
    maps = [torch.randn(1, 4, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    for parameter in heads.parameters():
        parameter.data.mul_(4)
    scale = torch.tensor([2.0, 2.5, 2.0, 2.5])
    proposals = torch.tensor([[10.0, 10, 60, 70], [30, 20, 110, 90]])
    found = heads.detect(lambda some, side: region_features(maps, [some], side), proposals, (120, 128), scale, 0.05)
    assert len(found.boxes) and found.labels.min() >= 1 and found.masks.shape[1:] == (28, 28)
    features = region_features(maps, [found.boxes * scale], 14)
    logits = heads.mask_predictor(heads.mask_head(features))
    for index, label in enumerate(found.labels.tolist()):
        torch.testing.assert_close(found.masks[index], logits[index, label - 1].sigmoid())


def test_regions_are_taken_a_few_at_a_time(heads: RoIHeads, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.randn(1, 4, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    for parameter in heads.parameters():
        parameter.data.mul_(4)
    corners = torch.arange(12.0)[:, None].expand(-1, 2) * 9
    proposals, asked = torch.cat([corners, corners + 20], dim=1), list[tuple[int, int]]()

    def features(boxes: Tensor, side: int) -> Tensor:
        asked.append((len(boxes), side))
        return region_features(maps, [boxes], side)

    whole = heads.detect(features, proposals, (128, 128), NO_SCALE, 0.05)
    assert asked == [(12, 7), (len(whole.boxes), 14)]
    monkeypatch.setattr(roi_heads, "_PROPOSALS_AT_ONCE", 5)
    monkeypatch.setattr(roi_heads, "_MASKS_AT_ONCE", 2)
    asked.clear()
    parts = heads.detect(features, proposals, (128, 128), NO_SCALE, 0.05)
    assert asked[:3] == [(5, 7), (5, 7), (2, 7)] and max(count for count, side in asked if side == 14) == 2
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)


def test_more_objects_take_more_proposals() -> None:
    assert [roi_heads.num_proposals(count) for count in (1, 100, 101, 3000)] == [1000, 1000, 1010, 30_000]


def test_no_proposal_is_no_detection(heads: RoIHeads) -> None:
    maps = [torch.randn(1, 4, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    found = heads.detect(
        lambda some, side: region_features(maps, [some], side), torch.zeros(0, 4), (128, 128), NO_SCALE, 0.05
    )
    assert [part.shape[0] for part in found] == [0, 0, 0, 0]


def test_losses_by_the_formula(heads: RoIHeads) -> None:
    maps = [torch.randn(2, 4, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32)]
    masks = torch.zeros(2, 128, 128, dtype=torch.uint8)
    masks[0, 10:50, 10:60] = masks[1, 60:120, 50:90] = 1
    boxes = torch.tensor([[10.0, 10, 60, 50], [50, 60, 90, 120]])
    empty = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 128, 128))
    proposals = [torch.tensor([[12.0, 8, 58, 52], [0, 0, 9, 9]]), torch.tensor([[20.0, 20, 80, 80]])]
    found = heads.losses(maps, proposals, [Objects(boxes, torch.tensor([1, 3]), masks), empty])
    # Regions of the first image: both objects (objects are proposals too), the proposal on the first object, and a
    # proposal on the background. The second image has only background.
    regions = [torch.cat([boxes, proposals[0]]), proposals[1]]
    labels = torch.tensor([0, 2, 0, 3, 3])
    logits, steps = heads._boxes(region_features(maps, regions, 7))
    torch.testing.assert_close(found["loss_classifier"], F.cross_entropy(logits, labels))
    target = encode_boxes(regions[0][:3], boxes[[0, 1, 0]], STD)
    box_loss = (steps[[0, 1, 2], [0, 2, 0]] - target).abs().sum() / 5
    torch.testing.assert_close(found["loss_box_reg"], box_loss)
    mask_logits = heads._masks(region_features(maps, [regions[0][:3], regions[1][:0]], 14), torch.tensor([0, 2, 0]))
    targets = mask_targets(masks, regions[0][:3], torch.tensor([0, 1, 0]), 28)
    torch.testing.assert_close(found["loss_mask"], F.binary_cross_entropy_with_logits(mask_logits, targets))


def test_a_batch_without_objects_reaches_every_weight(heads: RoIHeads) -> None:
    maps = [torch.randn(1, 4, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    empty = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64))
    losses = heads.losses(maps, [torch.tensor([[0.0, 0, 9, 9]])], [empty])
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())
