"""Tests which object each box is trained to find."""

import torch

from xcit.models.detection.matching import BACKGROUND, IN_BETWEEN, match, sample

OBJECTS = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20]])


def boxes_of_height(*heights: float) -> torch.Tensor:
    return torch.tensor([[0.0, 0, 10, height] for height in heights])


def test_thresholds() -> None:
    one = OBJECTS[:1]
    found = match(boxes_of_height(10, 7, 6.9, 3, 2.9), one, positive=0.7, negative=0.3, lowest=0.3)
    assert found.tolist() == [0, 0, IN_BETWEEN, IN_BETWEEN, BACKGROUND]


def test_the_best_boxes_of_an_object_belong_to_it_if_they_are_not_too_bad() -> None:
    far = torch.tensor([[0.0, 0, 10, 10]])
    assert match(boxes_of_height(4, 4, 3), far, positive=0.7, negative=0.3, lowest=0.3).tolist() == [0, 0, IN_BETWEEN]
    assert match(boxes_of_height(2.9, 2), far, positive=0.7, negative=0.3, lowest=0.3).tolist() == [BACKGROUND] * 2


def test_an_object_takes_its_best_box_from_the_one_the_box_overlaps_more() -> None:
    # The only box overlaps the first object with an IoU of 0.8 and the second with 0.4, and is the best box of both.
    # The later object gets the box.
    box = boxes_of_height(8)
    assert match(box, OBJECTS, positive=0.7, negative=0.3, lowest=0.3).tolist() == [1]
    assert match(box, OBJECTS.flip(0), positive=0.7, negative=0.3, lowest=0.3).tolist() == [1]
    assert match(box, OBJECTS, positive=0.5, negative=0.5, lowest=0.5).tolist() == [0]


def test_without_objects_all_is_background() -> None:
    assert (
        match(boxes_of_height(1, 2), OBJECTS[:0], positive=0.5, negative=0.5, lowest=0.5).tolist() == [BACKGROUND] * 2
    )
    assert match(boxes_of_height(), OBJECTS, positive=0.5, negative=0.5, lowest=0.5).tolist() == []


def test_sampling_fills_up_with_background() -> None:
    torch.manual_seed(0)
    matched = torch.tensor([0] * 300 + [BACKGROUND] * 1000 + [IN_BETWEEN] * 500)
    positive, negative = sample(matched, 256, 0.5)
    assert (len(positive), len(negative)) == (128, 128)
    assert len(set(positive.tolist())) == 128 and (matched[positive] == 0).all() and (matched[negative] == -1).all()
    positive, negative = sample(matched[290:], 256, 0.5)
    assert (len(positive), len(negative)) == (10, 246)
    positive, negative = sample(matched[:310], 256, 0.5)
    assert (len(positive), len(negative)) == (128, 10)
