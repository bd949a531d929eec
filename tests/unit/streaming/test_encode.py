"""Compares streamed passes with the whole image in float64: every output, odd sizes, tokens in memory and on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming_support import SPEC, in_float64, picture, random_model, share_of_largest

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.models import XCiT, XCiTConfig
from xcit.streaming import ArrayMap, Budget, Place, Wanted, encode

CLOSE = 1e-5
PLACES: tuple[Place, ...] = ("device", "scratch")
SIZES = [(8, 8), (9, 8), (8, 41), (17, 15), (57, 8), (123, 61)]
"""Heights and widths: one patch, one pixel more, one row, one column, and fewer rows than LPI needs to start."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_output_is_that_of_the_whole_image_in_float64(
    model: XCiT, force: Callable[[Place, int], None], scratch: Path, place: Place, rows: int
) -> None:
    force(place, rows)
    blocks, depth = range(5), 3
    for size in SIZES:
        pixels = picture(*size)
        maps = {block: ArrayMap() for block in blocks}
        wanted = Wanted(class_tokens=frozenset({3, 4}), means=frozenset(blocks), maps=maps)
        found = encode(model, ArrayRows(pixels), wanted, memory=Budget(memory=10**9, scratch=scratch))
        assert found.report.plan.place == place and found.report.plan.rows_at_once == rows
        exact, image = in_float64(model, pixels)
        with torch.no_grad():
            feature_maps = exact.extract_feat(image, out_type="featmap", out_indices=blocks)
            for block, (expected,) in zip(blocks, feature_maps, strict=True):
                assert share_of_largest(maps[block].array.transpose(2, 0, 1), expected) <= CLOSE
            means = exact.extract_feat(image, out_type="avg_featmap", out_indices=blocks)
            for block, (expected,) in zip(blocks, means, strict=True):
                # Relative to the largest feature, because the mean itself may be near 0.
                difference = (found.taken.means[block].double() - expected).abs().max()
                assert difference <= CLOSE * feature_maps[block].abs().max()
            tokens = exact.extract_feat(image, out_type="cls_token", out_indices=range(depth, 5))
            for block, (expected,) in zip(range(depth, 5), tokens, strict=True):
                assert share_of_largest(found.taken.class_tokens[block], expected) <= CLOSE
    assert not list(scratch.iterdir()) if place == "scratch" else not scratch.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 16, "tokens_norm": False},
        {"patch_size": 4, "in_channels": 1, "qkv_bias": False},
        {"cls_depth": 0, "global_pool": "avg"},
        {"in_channels": 5},
    ],
    ids=["p16-nano", "p4-grey", "no-class-token", "five-channels"],
)
def test_every_kind_of_model(changes: dict[str, Any], force: Callable[[Place, int], None], scratch: Path) -> None:
    force("scratch", 2)
    config = replace(XCiTConfig(patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=3), **changes)
    model, channels = random_model(config), config.in_channels
    spec = replace(SPEC, mean=(0.4,) * channels, std=(0.3,) * channels)
    pixels, last, target = picture(70, 50, channels), config.depth + config.cls_depth - 1, ArrayMap()
    encode(
        model,
        ArrayRows(pixels),
        Wanted(maps={last: target}),
        preprocessing=spec,
        memory=Budget(memory=10**9, scratch=scratch),
    )
    exact = XCiT(config).eval()
    exact.load_state_dict(model.state_dict())
    image = (torch.from_numpy(pixels.astype(np.float64) / 255).permute(2, 0, 1)[None] - 0.4) / 0.3
    with torch.no_grad():
        (expected,) = exact.double().extract_feat(image, out_type="featmap")
    assert share_of_largest(target.array.transpose(2, 0, 1), expected[0]) <= CLOSE


def test_attention_is_the_softmax_over_the_whole_image(
    model: XCiT, force: Callable[[Place, int], None], scratch: Path
) -> None:
    from xcit.explain import class_attention

    pixels = picture(123, 61)
    for block in (0, 1):
        (expected,) = class_attention(pixels, model, block=block)
        for place in PLACES:
            force(place, 3)
            memory = Budget(memory=10**9, scratch=scratch)
            found = encode(model, ArrayRows(pixels), Wanted(attention=3 + block), memory=memory).taken
            assert found.attention is not None and found.class_shares is not None
            assert share_of_largest(found.attention, torch.from_numpy(expected.heads)) <= CLOSE
            assert share_of_largest(found.class_shares, torch.from_numpy(expected.class_token)) <= CLOSE
            total = found.attention.sum(dim=(1, 2)) + found.class_shares
            torch.testing.assert_close(total, torch.ones(2))


@pytest.mark.parametrize("place", PLACES)
def test_tokens_in_bfloat16_are_near_and_half_as_large(
    model: XCiT, force: Callable[[Place, int], None], scratch: Path, place: Place
) -> None:
    force(place, 3)
    pixels, wanted = picture(123, 61), Wanted(class_tokens=frozenset({4}))
    whole = encode(model, ArrayRows(pixels), wanted, memory=Budget(memory=10**9, scratch=scratch))
    budget = Budget(memory=10**9, scratch=scratch, token_dtype=torch.bfloat16)
    half = encode(model, ArrayRows(pixels), wanted, memory=budget)
    difference = share_of_largest(half.taken.class_tokens[4], whole.taken.class_tokens[4])
    assert CLOSE < difference < 0.05
    assert 2 * half.report.bytes_written == whole.report.bytes_written
    assert 2 * half.report.plan.scratch_bytes == whole.report.plan.scratch_bytes


def test_progress_goes_over_the_rows_of_all_passes(model: XCiT, source: ArrayRows) -> None:
    calls: list[tuple[int, int]] = []
    encode(model, source, Wanted(class_tokens=frozenset({4})), progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {6 * 16} and done == sorted(done) and done[-1] == 6 * 16


def test_the_report_is_one_line(model: XCiT, source: ArrayRows) -> None:
    line = encode(model, source, Wanted(means=frozenset({1}))).report.line()
    assert line.startswith("61 x 123 pixels, 3 passes, tokens in memory") and line.endswith("megapixels per second")


def test_a_model_in_training_that_is_not_fused_is_left_so(model: XCiT, source: ArrayRows) -> None:
    expected = encode(model, source, Wanted(class_tokens=frozenset({4}))).taken.class_tokens[4]
    model.train()
    found = encode(model, source, Wanted(class_tokens=frozenset({4}))).taken.class_tokens[4]
    assert torch.equal(found, expected) and model.training


@pytest.mark.parametrize(
    ("pixels", "wanted", "message"),
    [
        (picture(7, 30), Wanted(means=frozenset({0})), "30 x 7 pixels, smaller than one patch of 8 x 8"),
        (picture(9, 30, 4), Wanted(means=frozenset({0})), "has 4 channels, the model takes 3"),
        (picture(9, 30), Wanted(means=frozenset({5})), "there is no block 5: the model has 5"),
        (
            picture(9, 30),
            Wanted(class_tokens=frozenset({1})),
            "block 1 has no class token: the class token enters at block 3 of 5",
        ),
        (picture(9, 30), Wanted(), "no output is requested"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(model: XCiT, pixels: np.ndarray, wanted: Wanted, message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        encode(model, ArrayRows(pixels), wanted)
