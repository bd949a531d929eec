"""Tests the parts of a pass in stripes of any height: sliding convolutions, sums, class attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xcit.models import XCiT, XCiTConfig, fused
from xcit.models.fused import FusedClassAttentionBlock, FusedXCABlock
from xcit.models.layers import ClassAttentionBlock, XCABlock
from xcit.models.stripes import (
    ClassAttentionSums,
    SlidingConv,
    Sums,
    TensorTokens,
    pass_xca_block,
    spans,
    sums_of,
)

heights = st.integers(1, 23)
cuts = st.lists(st.integers(1, 9), min_size=1, max_size=8)
QUICK = settings(max_examples=60, deadline=None)


def stripes(height: int, sizes: list[int]) -> list[tuple[int, int]]:
    """Divides a height into stripes of `sizes`, which are repeated; returns (start, end) of each stripe."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < height:
        end = min(start + sizes[len(found) % len(sizes)], height)
        found.append((start, end))
        start = end
    return found


@QUICK
@given(st.integers(0, 50), st.integers(1, 60))
def test_spans_cover_everything_once(length: int, size: int) -> None:
    found = [index for start, end in spans(length, size) for index in range(start, end)]
    assert found == list(range(length))
    assert all(0 < end - start <= size for start, end in spans(length, size))


@torch.no_grad()
@QUICK
@given(heights, st.integers(1, 9), cuts, st.sampled_from([1, 2]), st.booleans())
def test_a_sliding_convolution_is_the_convolution(
    height: int, width: int, sizes: list[int], stride: int, is_depthwise: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, stride=stride, padding=1, groups=4 if is_depthwise else 1).double()
    image = torch.randn(2, 4, height, width, dtype=torch.float64)
    sliding = SlidingConv(conv)
    pieces = [sliding.push(image[:, :, a:b], is_last=b == height) for a, b in stripes(height, sizes)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), conv(image))


@torch.no_grad()
@QUICK
@given(heights, st.integers(1, 5), st.integers(1, 9))
def test_a_pass_of_a_block_is_the_block(height: int, width: int, rows_at_once: int) -> None:
    torch.manual_seed(0)
    plain = [XCABlock(8, 2, 16, qkv_bias=True, layer_scale=0.7, drop_path_rate=0.0).double().eval() for _ in range(2)]
    first, second = (FusedXCABlock(block) for block in plain)
    tokens = torch.randn(height, width, 8, dtype=torch.float64)
    place = TensorTokens(tokens.clone())
    sums = sums_of(place, first.norm_xca, rows_at_once)
    sums = pass_xca_block(first, place, sums, rows_at_once, place.write, second.norm_xca)
    nothing = pass_xca_block(second, place, sums, rows_at_once, place.write)
    expected = tokens.flatten(0, 1)[None]
    for block in plain:
        expected = block(expected, height, width)
    torch.testing.assert_close(place.tensor.flatten(0, 1), expected[0])
    assert sums.count == height * width and nothing.count == 0


@torch.no_grad()
@QUICK
@given(st.integers(1, 40), cuts, st.floats(0.1, 40))
def test_class_attention_by_parts_is_the_softmax_over_all(num_tokens: int, sizes: list[int], sharpness: float) -> None:
    torch.manual_seed(0)
    plain = ClassAttentionBlock(8, 2, 16, qkv_bias=True, layer_scale=0.7, tokens_norm=True).double().eval()
    plain.attn.q.weight.normal_().mul_(sharpness)
    block = FusedClassAttentionBlock(plain)
    tokens = torch.randn(3, 1 + num_tokens, 8, dtype=torch.float64)
    attention = ClassAttentionSums(block, tokens[:, :1])
    scores = [attention.add(block.norm_attn(tokens[:, 1 + a : 1 + b])) for a, b in stripes(num_tokens, sizes)]
    torch.testing.assert_close(block.finish(tokens[:, :1], attention.value()), plain(tokens)[:, :1])
    shares = attention.shares(torch.cat([attention.class_scores, *scores], dim=2))
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(3, 2, dtype=torch.float64))


def test_sums_over_millions_of_tokens_are_as_exact_as_those_of_one_stripe() -> None:
    torch.manual_seed(0)
    some = torch.randn(4096, 2) + 3
    one, all_ = (Sums.empty(2, some.device) for _ in range(2))
    one.add(some)
    for _ in range(1000):
        all_.add(some)
    exact = some.double()
    torch.testing.assert_close(one.gram, exact.mT @ exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(all_.gram, 1000 * one.gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(all_.total, 1000 * one.total, rtol=1e-12, atol=0)
    assert all_.count == 4096 * 1000


@torch.no_grad()
def test_a_large_image_in_memory_takes_the_same_pass_watched_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.NUMBERS_AT_ONCE, "cpu", 16 * 20)
    torch.manual_seed(0)
    model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5)).eval()
    images, calls = torch.randn(2, 3, 70, 90), []
    faster = model.fuse()
    hook = faster.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    watched = faster(images)
    hook.remove()
    assert calls == [1]
    torch.testing.assert_close(faster(images), watched, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(watched, model(images), rtol=1e-4, atol=1e-5)
