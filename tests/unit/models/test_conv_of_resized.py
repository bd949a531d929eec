"""Tests the convolution of resized maps that is computed from the small maps: it equals resizing, then convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from xcit.models.conv_of_resized import ConvOfResizedRows, moved_interpolation
from xcit.models.map_rows import TensorRows

sides = st.integers(1, 70)


def as_image(rows: Tensor) -> Tensor:
    return rows.permute(2, 0, 1)[None].contiguous()


def numbers(height: int, width: int, channels: int) -> Tensor:
    return torch.randn(height, width, channels, generator=torch.Generator().manual_seed(height * 100 + width))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(sides, sides),
    coarse=st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
    with_fine=st.booleans(),
)
@torch.no_grad()
def test_it_is_the_convolution_of_the_concatenation(
    size: tuple[int, int], coarse: list[tuple[int, int]], with_fine: bool
) -> None:
    maps = [numbers(*side, 3) for side in coarse]
    fine = numbers(*size, 3) if with_fine else None
    conv = nn.Conv2d(3 * (len(maps) + with_fine), 4, 3, padding=1)
    resized = [F.interpolate(as_image(one), size, mode="bilinear", align_corners=False) for one in maps]
    expected = F.relu(conv(torch.cat(resized if fine is None else [as_image(fine), *resized], dim=1)))
    found = ConvOfResizedRows(
        None if fine is None else TensorRows(fine), [*map(TensorRows, maps)], size, conv, torch.relu_
    )
    assert found.workspace(3) > 0
    for step in (size[0], 5, 2):
        for start in range(0, size[0], step):
            end = min(start + step, size[0])
            torch.testing.assert_close(
                as_image(found.read(start, end)), expected[:, :, start:end], rtol=1e-4, atol=1e-5
            )


def test_a_convolution_without_bias() -> None:
    conv, rows = nn.Conv2d(3, 4, 3, padding=1, bias=False), numbers(5, 4, 3)
    with torch.no_grad():
        expected = conv(F.interpolate(as_image(rows), (10, 8), mode="bilinear"))
        found = ConvOfResizedRows(None, [TensorRows(rows)], (10, 8), conv).read(0, 10)
    torch.testing.assert_close(as_image(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [(1, 1), (3, 7), (7, 3), (8, 16)])
def test_the_matrix_of_a_side(lengths: tuple[int, int]) -> None:
    small, large = lengths
    matrix, first = moved_interpolation(0, large, small, large)
    assert first == 0 and matrix.shape == (large, 3 * small)
    plain = F.interpolate(torch.eye(small)[None], large, mode="linear")[0].t()
    torch.testing.assert_close(matrix[:, 1::3], plain)
    torch.testing.assert_close(matrix[1:, 0::3], plain[:-1])
    assert not matrix[0, 0::3].any() and not matrix[-1, 2::3].any()
