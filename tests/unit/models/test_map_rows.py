"""Tests layers over maps that are read by rows: for any order of rows, they give the values of the whole map."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.models.map_rows import (
    ComputedRows,
    ConvRows,
    DoubledRows,
    MapRows,
    NearestRows,
    ResizedRows,
    ShrunkMapRows,
    SumRows,
    TensorRows,
    all_maps,
    lateral_rows,
    numbers_held,
)
from xcit.models.pyramid import TokenPyramid
from xcit.models.pyramid_rows import is_plain_pyramid, pyramid_rows

SIZES = [(1, 1), (1, 7), (2, 3), (5, 4), (13, 9), (32, 21)]


def as_map(rows: Tensor) -> Tensor:
    """Returns rows (H, W, C) as a contiguous map (1, C, H, W): torch rounds differently with channels last."""
    return rows.permute(2, 0, 1)[None].contiguous()


def numbers(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(height, width, channels, generator=torch.Generator().manual_seed(height * width))


def check(rows: MapRows, expected: Tensor) -> None:
    """Compares reads with a map: overlapping reads from the top, single rows from the bottom, and the whole map."""
    assert (rows.channels, rows.height, rows.width) == expected.shape[1:]
    reads = [
        (start, min(start + size, rows.height)) for size in (2, 5) for start in range(0, rows.height, max(1, size - 1))
    ]
    reads += [(start, start + 1) for start in reversed(range(rows.height))] + [(0, rows.height)]
    for start, end in reads:
        torch.testing.assert_close(as_map(rows.read(start, end)), expected[:, :, start:end], rtol=1e-4, atol=1e-5)


def _ones(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    layer.weight.fill_(1)
    layer.bias.zero_()


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_layers(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rows, whole = TensorRows(numbers(*size)), as_map(numbers(*size))
    for kernel in (1, 3, 5):
        conv = nn.Conv2d(3, 4, kernel, padding=kernel // 2)
        check(ConvRows(rows, conv), conv(whole))
        check(ConvRows(rows, conv, torch.relu_), F.relu(conv(whole)))
    double = nn.ConvTranspose2d(3, 4, 2, stride=2)
    doubled = DoubledRows(rows, double.weight, double.bias)
    check(doubled, double(whole))
    after = nn.Conv2d(4, 5, 1)
    check(lateral_rows(doubled, after, torch.relu_), F.relu(after(double(whole))))
    check(
        lateral_rows(rows, nn.Conv2d(3, 5, 1).requires_grad_(False).apply(_ones)),
        whole.sum(1, True).expand(-1, 5, -1, -1),
    )
    factor = [min(2, side) for side in size]
    check(ShrunkMapRows(rows, 2), F.max_pool2d(whole, factor))
    check(SumRows(rows, rows), whole * 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.4, 1, 2, 2.7, 16])
def test_resizing(size: tuple[int, int], scale: float) -> None:
    rows, whole = TensorRows(numbers(*size)), as_map(numbers(*size))
    other = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
    for align in (False, True):
        expected = F.interpolate(whole, other, mode="bilinear", align_corners=align)
        check(ResizedRows(rows, other, align_corners=align), expected)
    check(NearestRows(rows, other), F.interpolate(whole, other, mode="nearest"))


@pytest.mark.parametrize("lengths", [(1024, 4096), (4096, 16384), (3000, 11999), (769, 12301), (5, 16381)])
def test_positions_in_large_maps_are_rounded_as_torch_rounds_them(lengths: tuple[int, int]) -> None:
    column = numbers(lengths[0], 1, 8)
    for align in (False, True):
        expected = F.interpolate(as_map(column), (lengths[1], 1), mode="bilinear", align_corners=align)
        found = ResizedRows(TensorRows(column), (lengths[1], 1), align_corners=align).read(0, lengths[1])
        assert (as_map(found) - expected).abs().max() < 1e-6


def test_low_precision_is_interpolated_in_float32() -> None:
    whole = numbers(5, 4).bfloat16()
    found = ResizedRows(TensorRows(whole), (13, 11)).read(0, 13)
    exact = F.interpolate(as_map(whole.float()), (13, 11), mode="bilinear")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(as_map(found).float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (9, 4)])
@torch.no_grad()
def test_the_pyramid(patch_size: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = TokenPyramid(8, patch_size).eval()
    for name, buffer in pyramid.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    folded = copy.deepcopy(pyramid)
    assert not is_plain_pyramid(folded) or patch_size < 16
    folded.fold_norms()
    assert is_plain_pyramid(folded)
    taps = [numbers(*grid, 8) * (index + 1) for index in range(4)]
    for level, expected in zip(
        pyramid_rows(folded, [*map(TensorRows, taps)]), pyramid([*map(as_map, taps)]), strict=True
    ):
        check(level, expected)


def test_a_pyramid_that_somebody_watches_is_called() -> None:
    pyramid: Any = TokenPyramid(4, 16).eval()
    pyramid.fold_norms()
    assert is_plain_pyramid(pyramid)
    handle = pyramid.stride8[0].register_forward_hook(lambda *_: None)
    assert not is_plain_pyramid(pyramid)
    handle.remove()
    pyramid.stride8[0].forward = lambda image: image
    assert not is_plain_pyramid(pyramid)


class Counted(ComputedRows):
    """Rows of ones that count the computations of each row."""

    def __init__(self, height: int) -> None:
        super().__init__(height, 1, 1, [])
        self.counts = [0] * height

    def _compute(self, start: int, end: int) -> Tensor:
        for row in range(start, end):
            self.counts[row] += 1
        return torch.ones(end - start, 1, 1)


def test_no_row_is_computed_twice_from_the_top_to_the_bottom() -> None:
    source = Counted(40)
    conv = nn.Conv2d(1, 1, 3, padding=1)
    ahead, behind = ConvRows(ConvRows(source, conv), conv), ResizedRows(source, (80, 1))
    for start in range(0, 40, 8):
        ahead.read(start, start + 8)
        behind.read(2 * start, 2 * start + 16)
    assert source.counts == [1] * 40
    assert len(all_maps(ahead, behind)) == 4
    held: Callable[[int], int] = lambda rows: numbers_held(ahead, rows)  # noqa: E731
    assert held(1) < held(8) < held(40) + 1
