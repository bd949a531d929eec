"""Sizes, padding and types of images."""

import pytest
import torch

from xcit.errors import XCiTError
from xcit.images.resize_8bit import resize_bilinear_8bit
from xcit.models.detection.images import pad_and_stack, padded_size, resized, to_8_bits


def test_padding_is_to_the_right_and_below() -> None:
    assert padded_size((800, 1067)) == (800, 1088)
    batch = pad_and_stack([torch.ones(3, 40, 64), torch.ones(3, 10, 70)])
    assert batch.shape == (2, 3, 64, 96)
    assert batch[0, :, :40, :64].all() and batch[0].sum() == 3 * 40 * 64
    assert batch[1].sum() == 3 * 10 * 70


@pytest.mark.parametrize("size", [(33, 52), (11, 60), (7, 9), (10, 16), (20, 32), (1, 1), (20, 77)])
def test_resizing_is_opencvs(size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = resize_bilinear_8bit(pixels.permute(1, 2, 0).numpy(), size)
    assert torch.equal(resized(pixels, size), torch.from_numpy(expected).permute(2, 0, 1))


def test_nothing_is_left_of_no_size() -> None:
    with pytest.raises(XCiTError, match="can't be scaled to 0x5 pixels"):
        resized(torch.zeros(3, 8, 8, dtype=torch.uint8), (0, 5))


def test_numbers_of_0_to_1_become_the_8_bits_they_were() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(to_8_bits(pixels.float() / 255, 1), pixels)
    assert to_8_bits(pixels, 1) is pixels


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(2, 8, 8), r"\(3, height, width\), not \(2, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), "not \\(1, 3, 8, 8\\)"),
        (torch.zeros(3, 0, 8), "not \\(3, 0, 8\\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "not torch.int64"),
    ],
)
def test_what_is_no_image_is_named(image: torch.Tensor, words: str) -> None:
    with pytest.raises(XCiTError, match=words):
        to_8_bits(image, 3)
