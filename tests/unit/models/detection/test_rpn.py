"""Proposals and their losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.models.detection import rpn
from xcit.models.detection.anchors import ANCHOR_STRIDES, all_anchors
from xcit.models.detection.boxes import encode_boxes, nms_by_class
from xcit.models.detection.matching import match, sample
from xcit.models.detection.rpn import RegionProposalNetwork, best_scores

SIZES = ((32, 48), (16, 24), (8, 12), (4, 6), (2, 3))


@pytest.fixture
def outputs() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns maps, logits and steps of an image of height 128 and width 192."""
    draw = torch.Generator().manual_seed(0)
    maps = [torch.zeros(1, 8, *size) for size in SIZES]
    logits = [torch.randn(1, 3 * height * width, generator=draw) for height, width in SIZES]
    steps = [0.1 * torch.randn(1, 3 * height * width, 4, generator=draw) for height, width in SIZES]
    return maps, logits, steps


def test_the_head_orders_its_outputs_by_place_and_then_by_anchor() -> None:
    network = RegionProposalNetwork(8, 8.0)
    features = torch.randn(2, 8, 5, 7)
    logits, steps = network([features])
    raw_logits, raw_steps = network.head([features])
    place = (2 * 7 + 3) * 3 + 1
    assert torch.equal(logits[0][:, place], raw_logits[0][:, 1, 2, 3])
    assert torch.equal(steps[0][:, place], raw_steps[0][:, 4:8, 2, 3])


def test_each_map_gives_its_best_and_small_boxes_stay(
    outputs: tuple[list[Tensor], list[Tensor], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, logits, steps = outputs
    network = RegionProposalNetwork(8, 8.0).eval()
    monkeypatch.setattr(rpn, "NMS_IOU", 1.0)
    (found,) = network.proposals(maps, logits, steps, [(120, 180)], 10)
    assert len(found) == 10
    assert found[:, 2].max() <= 180 and found[:, 3].max() <= 120
    # The position of the best proposal follows from its anchor and step.
    level = max(range(5), key=lambda index: float(logits[index].max()))
    index = logits[level][0].argmax()
    before = sum(3 * height * width for height, width in SIZES[:level])
    anchor = all_anchors(SIZES, 8.0, torch.device("cpu"))[before + index]
    width = anchor[2] - anchor[0]
    step = steps[level][0, index]
    x = (anchor[0] + anchor[2]) / 2 + width * step[0] - width * step[2].exp() / 2
    assert found[0, 0].item() == pytest.approx(x.clamp(0, 180).item(), abs=1e-3)
    # A box without area after clipping is kept: the published minimum side length is 0.
    logits[0][0, 5], steps[0][0, 5] = 99.0, torch.tensor([0.0, -99.0, 0, 0])
    (found,) = network.proposals(maps, logits, steps, [(120, 180)])
    assert found[0, 1] == found[0, 3] == 0


def test_as_many_of_each_map_are_looked_at_as_are_left_of_all(
    outputs: tuple[list[Tensor], list[Tensor], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, logits, steps = outputs
    network, seen = RegionProposalNetwork(8, 8.0).eval(), list[int]()

    def counted(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
        seen.extend(classes.bincount().tolist())
        return nms_by_class(boxes, scores, classes, iou)

    monkeypatch.setattr(rpn, "nms_by_class", counted)
    network.proposals(maps, logits, steps, [(120, 180)], 10)
    assert seen == [10] * 5


def test_maps_do_not_suppress_one_another_and_a_thousand_are_left(
    outputs: tuple[list[Tensor], list[Tensor], list[Tensor]],
) -> None:
    maps, logits, steps = outputs
    network = RegionProposalNetwork(8, 8.0)
    assert len(network.train().proposals(maps, logits, steps, [(128, 192)])[0]) <= 1000
    zero = [torch.full_like(level, -20) for level in logits]
    same = [torch.zeros_like(level) for level in steps]
    # Two maps give the same box: on the second map, the step halves the anchor.
    zero[0][0, 1], zero[1][0, 1] = 5.0, 4.0
    same[1][0, 1, 2:] = -torch.tensor(2.0).log()
    (found,) = network.eval().proposals(maps, zero, same, [(128, 192)])
    torch.testing.assert_close(found[0], found[1])


def test_losses_by_the_formula(outputs: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> None:
    maps, logits, steps = outputs
    network = RegionProposalNetwork(8, 8.0).train()
    anchors = all_anchors(SIZES, 8.0, torch.device("cpu"))
    objects = anchors[[4000, 5700]] + 1.0
    torch.manual_seed(0)
    found = network.losses(maps, logits, steps, [(128, 192)], [objects])
    torch.manual_seed(0)
    matched = match(anchors, objects, positive=0.7, negative=0.3, lowest=0.3)
    positive, negative = sample(matched, 256, 0.5)
    all_logits, all_steps = torch.cat(logits, dim=1)[0], torch.cat(steps, dim=1)[0]
    classes = F.softplus(-all_logits[positive]).sum() + F.softplus(all_logits[negative]).sum()
    boxes = (all_steps[positive] - encode_boxes(anchors[positive], objects[matched[positive]], rpn.STD)).abs().sum()
    assert len(positive) + len(negative) == 256
    torch.testing.assert_close(found["loss_objectness"], classes / 256)
    torch.testing.assert_close(found["loss_rpn_box_reg"], boxes / 256)


def test_an_image_without_objects_counts_one_that_is_not_there(
    outputs: tuple[list[Tensor], list[Tensor], list[Tensor]],
) -> None:
    maps, logits, steps = outputs
    network = RegionProposalNetwork(8, 8.0).train()
    found = network.losses(
        maps, [torch.zeros_like(level) for level in logits], steps, [(128, 192)], [torch.zeros(0, 4)]
    )
    assert found["loss_objectness"].item() == pytest.approx(256 * torch.tensor(2.0).log().item() / 257)
    assert found["loss_rpn_box_reg"] == 0


def test_the_padding_of_the_batch_is_not_trained(outputs: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> None:
    maps, logits, steps = outputs
    network = RegionProposalNetwork(8, 8.0).train()
    logits = [level.clone().requires_grad_() for level in logits]
    network.losses(maps, logits, steps, [(64, 96)], [torch.zeros(0, 4)])["loss_objectness"].backward()
    for level, stride, (height, width) in zip(logits, ANCHOR_STRIDES, SIZES, strict=True):
        assert level.grad is not None
        trained = level.grad.view(height, width, 3).any(dim=2)
        assert not trained[-(-64 // stride) :].any() and not trained[:, -(-96 // stride) :].any()


@pytest.mark.parametrize("limit", [1, 40, 41, 500, 1000])
def test_the_best_are_those_of_a_stable_sort(limit: int) -> None:
    scores = torch.rand(900, generator=torch.Generator().manual_seed(0)).mul(30).round() / 30  # many scores are equal
    values, index = best_scores(scores, limit)
    expected, order = scores.sort(descending=True, stable=True)
    assert torch.equal(values, expected[:limit]) and torch.equal(index, order[:limit])
