"""Tests the parameter names of whole segmenters: conversion to published names and back, for every published config."""

from collections.abc import Callable

import pytest
import torch

from xcit.errors import XCiTError
from xcit.models import XCiTConfig, XCiTPyramid
from xcit.weights.dense import (
    MASK_RCNN,
    PYRAMID,
    SEM_FPN,
    UPERNET,
    dense_from_native,
    dense_to_native,
    detect_head,
)

HEADS = {"upernet": UPERNET, "sem-fpn": SEM_FPN, "mask-rcnn": MASK_RCNN}

DenseKeys = Callable[[str, str, int], dict[str, list[int]]]


@pytest.mark.parametrize("kind", HEADS)
def test_the_tables_are_bijective(kind: str) -> None:
    rows = HEADS[kind]
    assert len(set(rows.values())) == len(rows)
    assert not rows.keys() & set(rows.values())


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("architecture", ["tiny-12", "small-12", "small-24", "medium-24"])
def test_every_published_name_goes_there_and_back(
    dense_keys: DenseKeys, kind: str, architecture: str, patch_size: int
) -> None:
    keys = dense_keys(kind, architecture, patch_size)
    published = {name: torch.zeros(()).expand(shape) for name, shape in keys.items()}
    assert detect_head(published, HEADS) == kind
    native = dense_to_native(published, HEADS[kind])
    assert detect_head(native, HEADS) == kind
    assert len(native) == len(published)
    # Every name outside the XCiT differs from its published name, so an unconverted name would be noticed.
    assert not {name for name in native.keys() & published.keys() if not name.startswith("backbone.xcit.")}
    back = dense_from_native(native, HEADS[kind])
    assert back.keys() == published.keys()
    assert all(back[name] is published[name] for name in published)
    assert dense_to_native(native, HEADS[kind]) == native

    width = keys["backbone.blocks.0.gamma1"][0]
    config = XCiTConfig(
        patch_size=patch_size,
        embed_dim=width,
        depth=int(architecture[-2:]),
        num_heads=keys["backbone.blocks.0.attn.temperature"][0],
        cls_depth=0,
        num_classes=0,
        global_pool="none",
    )
    with torch.device("meta"):
        expected = {f"backbone.{name}": value.shape for name, value in XCiTPyramid(config).state_dict().items()}
    assert {name: value.shape for name, value in native.items() if name.startswith("backbone.")} == expected


def test_unknown_names_stay_and_mixed_ones_are_an_error() -> None:
    state = {"backbone.blocks.0.gamma1": torch.zeros(1), "other.weight": torch.zeros(1), "plain": torch.zeros(1)}
    native = dense_to_native(state, PYRAMID)
    assert native.keys() == {"backbone.xcit.blocks.0.scale_xca", "other.weight", "plain"}
    assert dense_from_native(native, PYRAMID).keys() == state.keys()
    assert detect_head(state, HEADS) is None
    with pytest.raises(XCiTError, match="two tensors are called"):
        dense_from_native(
            {"head.classifier.bias": torch.zeros(1), "decode_head.conv_seg.bias": torch.zeros(1)}, UPERNET
        )
