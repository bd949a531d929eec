"""Tests that the packaged model has the accuracy of its model card and its record, on all 10,000 test images."""

import re
from pathlib import Path

import pytest

import xcit
from xcit.zoo import CHECKPOINTS
from xcit.zoo.load import packaged_path

RECORD = CHECKPOINTS["xcit-pico-fashion-mnist"]


@pytest.mark.usefixtures("fashion_mnist")
def test_the_card_s_figure_is_reproduced_to_the_last_image() -> None:
    result = xcit.test(RECORD.recipe, "packaged", "fashion-mnist", batch_size=250, num_workers=0).report
    num_right = int(result.confusion.diagonal().sum())
    card = packaged_path(RECORD).with_suffix(".md").read_text(encoding="utf-8")
    stated = re.search(r"([\d,]+) of the 10,000 test images", card)
    assert stated is not None
    assert result.num_images == 10_000
    assert num_right == int(stated[1].replace(",", ""))
    assert [accuracy.top1 for accuracy in RECORD.accuracies] == [num_right / 100]
    assert not result.unreadable


def test_the_file_is_small_enough_to_ship() -> None:
    assert packaged_path(RECORD).stat().st_size <= 5_000_000


def test_card_is_beside_the_weights() -> None:
    card = Path(packaged_path(RECORD)).with_suffix(".md").read_text(encoding="utf-8")
    for part in ("Command", "Hardware", "Time", "Seed", "Licence"):
        assert f"| {part} |" in card
