"""Compares masked passes with a plain function in float64 that receives only the kept tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from streaming_support import in_float64, picture, random_model, share_of_largest
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.open_rows import open_rows
from xcit.images.rows import Mask, Pixels, RowsInfo
from xcit.images.selection import Selection
from xcit.models import XCiT, XCiTConfig
from xcit.models.layers import LPI, XCABlock
from xcit.streaming import ArrayMap, Budget, Place, Wanted, encode
from xcit.streaming.masks import kept_tokens

CLOSE = 1e-5


class Masked(ArrayRows):
    """An array with a mask; pixels where the mask is false are ignored."""

    def __init__(self, pixels: Pixels, mask: Mask, identity: str | None = None) -> None:
        super().__init__(pixels, RowsInfo(name="masked", identity=identity))
        self._pixels_that_count = mask

    def read_mask(self, start: int, end: int) -> Mask:
        return self._pixels_that_count[start:end]


def blob(height: int, width: int) -> Mask:
    """Returns a mask of a disc and a row at the lower edge: some tokens are partly in it, some stripes not at all."""
    y, x = np.mgrid[:height, :width]
    mask: Mask = (y - 0.3 * height) ** 2 + (x - 0.6 * width) ** 2 < (0.27 * height) ** 2
    mask[-1] = True
    return mask


def kept_alone(exact: XCiT, image: Tensor, keep: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the n kept tokens (n, D) after each block, and the class token (D,) after each class attention block."""

    def on_grid(tokens: Tensor) -> Tensor:
        grid = tokens.new_zeros(1, tokens.shape[2], *keep.shape)
        grid[0][:, keep] = tokens[0].T
        return grid

    def lpi(module: LPI, tokens: Tensor) -> Tensor:
        between = module.norm(F.gelu(module.conv1(on_grid(tokens))))[0][:, keep].T[None]
        return module.conv2(on_grid(between))[0][:, keep].T[None]

    tokens = exact._embed(image)[0][:, keep.flatten()]
    found: list[Tensor] = []
    classes: list[Tensor] = []
    for block in cast(list[XCABlock], exact.blocks):
        tokens = tokens + block.scale_xca * block.xca(block.norm_xca(tokens))
        tokens = tokens + block.scale_lpi * lpi(block.lpi, block.norm_lpi(tokens))
        tokens = tokens + block.scale_mlp * block.mlp(block.norm_mlp(tokens))
        found.append(tokens[0])
    if not exact.config.cls_depth:
        return found, classes
    tokens = torch.cat([exact.cls_token, tokens], dim=1)
    for index, last in enumerate(exact.cls_blocks):
        tokens = last(tokens)
        left = exact.norm(tokens) if index == len(exact.cls_blocks) - 1 else tokens
        found.append(left[0, 1:])
        classes.append(left[0, 0])
    return found, classes


def zeros_outside(image: Tensor, mask: Mask) -> Tensor:
    return image * torch.from_numpy(mask)


@pytest.mark.parametrize("place", ["device", "scratch"])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_output_is_that_of_the_kept_tokens_alone(
    model: XCiT, force: Callable[[Place, int], None], scratch: Path, place: Place, rows: int
) -> None:
    force(place, rows)
    for size in [(123, 61), (57, 8), (9, 41)]:
        pixels, mask = picture(*size), blob(*size)
        maps = {block: ArrayMap() for block in range(5)}
        wanted = Wanted(class_tokens=frozenset({3, 4}), means=frozenset(range(5)), maps=maps, attention=4)
        source = Masked(pixels, mask)
        taken = encode(model, source, wanted, memory=Budget(memory=10**9, scratch=scratch)).taken
        keep = kept_tokens(source, 8)
        assert keep is not None and 0 < keep.sum() < keep.numel()
        exact, image = in_float64(model, pixels)
        with torch.no_grad():
            tokens, classes = kept_alone(exact, zeros_outside(image, mask), keep)
        for block, expected in enumerate(tokens):
            found = torch.from_numpy(maps[block].array)
            assert share_of_largest(found[keep], expected) <= CLOSE
            assert found[~keep].isnan().all()
            difference = (taken.means[block].double() - expected.mean(dim=0)).abs().max()
            assert difference <= CLOSE * expected.abs().max()
        for block, expected in enumerate(classes):
            assert share_of_largest(taken.class_tokens[3 + block], expected) <= CLOSE
        assert taken.attention is not None and taken.class_shares is not None
        assert taken.attention[:, ~keep].isnan().all()
        total = taken.attention[:, keep].sum(dim=1) + taken.class_shares
        torch.testing.assert_close(total, torch.ones(2))


def test_nothing_follows_from_pixels_that_are_left_out(model: XCiT) -> None:
    mask, pixels = blob(90, 60), picture(90, 60).astype(np.float32) / 255
    other = np.where(mask[:, :, None], pixels, np.float32(np.nan))
    wanted = Wanted(class_tokens=frozenset({4}), means=frozenset({2}))
    first, second = (encode(model, Masked(one, mask), wanted).taken for one in (pixels, other))
    assert torch.equal(first.class_tokens[4], second.class_tokens[4])
    assert torch.equal(first.means[2], second.means[2])


def test_numbers_that_are_not_finite_are_refused_where_no_mask_leaves_them_out(model: XCiT) -> None:
    pixels = picture(90, 60).astype(np.float32) / 255
    pixels[33, 5, 1] = np.nan
    with pytest.raises(XCiTError, match=r"the image: rows \d+ to \d+ contain values that are not finite: leave these"):
        encode(model, ArrayRows(pixels), Wanted(means=frozenset({0})))


def test_a_mask_that_keeps_all_changes_nothing(model: XCiT) -> None:
    pixels, wanted = picture(70, 50), Wanted(class_tokens=frozenset({4}))
    found = encode(model, Masked(pixels, np.ones((70, 50), np.bool_)), wanted).taken.class_tokens[4]
    assert torch.equal(found, encode(model, ArrayRows(pixels), wanted).taken.class_tokens[4])


def test_a_model_without_class_attention_pools_what_is_kept() -> None:
    config = XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=4, cls_depth=0, global_pool="avg")
    model, pixels, mask = random_model(config), picture(70, 50), blob(70, 50)
    source = Masked(pixels, mask)
    found = encode(model, source, Wanted(means=frozenset({1}))).taken.means[1]
    exact, image = in_float64(model, pixels)
    keep = kept_tokens(source, 8)
    assert keep is not None
    with torch.no_grad():
        expected = kept_alone(exact, zeros_outside(image, mask), keep)[0][1]
    assert (found - expected.mean(dim=0)).abs().max() <= CLOSE * expected.abs().max()


def test_a_token_counts_if_half_of_its_pixels_do() -> None:
    mask = np.zeros((20, 17), np.bool_)
    mask[:4, :8] = True  # half of the first token's pixels
    mask[:4, 8:15] = True  # less than half of the second token's pixels
    mask[16:18, 16:] = True  # half of the 4 x 1 pixels of the last token
    keep = kept_tokens(Masked(picture(20, 17), mask), 8)
    assert keep is not None and keep.tolist() == [[True, False, False], [False] * 3, [False, False, True]]


def test_a_killed_run_goes_on_with_the_same_mask_alone(
    model: XCiT, force: Callable[[Place, int], None], scratch: Path
) -> None:
    force("scratch", 2)
    pixels, wanted = picture(123, 61), Wanted(class_tokens=frozenset({4}))
    np.save(scratch.parent / "a.npy", pixels)
    np.save(scratch.parent / "mask.npy", blob(123, 61))
    np.save(scratch.parent / "other.npy", ~blob(123, 61))

    def run(mask: str, stop_after: int | None = None) -> tuple[int, Tensor]:
        def progress(done: int, total: int) -> None:
            if stop_after is not None and done > stop_after:
                raise KeyboardInterrupt

        with open_rows(scratch.parent / "a.npy", selection=Selection(mask=scratch.parent / mask)) as source:
            memory = Budget(memory=10**9, scratch=scratch)
            found = encode(model, source, wanted, memory=memory, progress=progress)
        return found.report.resumed_from, found.taken.class_tokens[4]

    expected = run("mask.npy")[1]
    with pytest.raises(KeyboardInterrupt):
        run("mask.npy", 3 * 16)
    assert run("other.npy")[0] == 0
    resumed, found = run("mask.npy")
    assert resumed == 3 and torch.equal(found, expected)


def test_mistakes_are_said_in_one_line(model: XCiT) -> None:
    pixels, wanted = picture(30, 30), Wanted(class_tokens=frozenset({4}))
    with pytest.raises(XCiTError, match="masked: the mask or missing data leaves out all patches of the image"):
        encode(model, Masked(pixels, np.zeros((30, 30), np.bool_)), wanted)
    with pytest.raises(XCiTError, match=r"`read_mask` of rows 0 to 29 returned shape \(30, 20\)"):
        encode(model, Masked(pixels, np.ones((30, 20), np.bool_)), wanted)
