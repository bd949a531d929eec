"""Tests stems with other strides: everything that depends on the patch size must follow the strides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from xcit.config import from_dict, override, to_dict
from xcit.errors import XCiTError
from xcit.measure.complexity import complexity
from xcit.models import XCiT, XCiTConfig, XCiTPyramid, fused
from xcit.zoo import get_model, load_weights, save_model
from xcit.zoo.architectures import backbone_of

SMALL = XCiTConfig(embed_dim=16, depth=2, num_heads=2, num_classes=3)
STRIDES = [(1, 1, 2, 2), (2, 1, 1, 2), (2, 2, 1), (1, 2), (1, 1), (2, 1, 2, 1, 2)]


def trained(config: XCiTConfig) -> XCiT:
    torch.manual_seed(0)
    model = XCiT(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    return model.eval()


def test_the_patch_size_follows_and_one_shape_has_one_spelling() -> None:
    config = replace(SMALL, stem_strides=(1, 1, 2, 2))
    assert (config.patch_size, config.strides) == (4, (1, 1, 2, 2))
    assert XCiTConfig(stem_strides=(2, 2, 2, 2)) == XCiTConfig(patch_size=16) == XCiTConfig()
    assert XCiTConfig(stem_strides=(2, 2, 2)) == XCiTConfig(patch_size=8)
    assert (XCiTConfig().stem_strides, XCiTConfig().strides) == ((), (2, 2, 2, 2))
    assert from_dict(XCiTConfig, to_dict(config)) == config
    assert override(SMALL, {"stem_strides": "1,1,2,2"}) == config
    before = {name: value for name, value in to_dict(SMALL).items() if name != "stem_strides"}
    assert from_dict(XCiTConfig, before) == SMALL


def test_impossible_strides_are_refused() -> None:
    with pytest.raises(XCiTError, match=r"stem_strides are \(1, 3\), each must be 1 or 2"):
        XCiTConfig(stem_strides=(1, 3))
    with pytest.raises(XCiTError, match=r"patch_size is 8, but stem_strides \(1, 1, 2, 2\) make patches of 4 pixels"):
        replace(SMALL, stem_strides=(1, 1, 2, 2), patch_size=8)
    with pytest.raises(XCiTError, match="embed_dim 12 must be a multiple of 8"):
        XCiTConfig(stem_strides=(1, 1, 2, 2), embed_dim=12, num_heads=2)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("size", [(32, 32), (37, 45), (9, 70)])
@torch.no_grad()
def test_the_fused_model_in_stripes_is_the_model(
    strides: tuple[int, ...], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(replace(SMALL, stem_strides=strides))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    height, width = (-(-length // model.config.patch_size) for length in size)
    assert model.forward_features(images).shape == (2, 1 + height * width, 16)
    quick = model.fuse()
    for numbers in (1, 2**10, 2**13, 2**20):
        monkeypatch.setitem(fused.NUMBERS_AT_ONCE, "cpu", numbers)
        torch.testing.assert_close(quick(images), expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_the_stem_is_that_of_plain_convolutions() -> None:
    model = trained(replace(SMALL, stem_strides=(1, 1, 2, 2)))
    images = torch.randn(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    found = images
    layers: Any = model.stem
    for index, (layer, stride) in enumerate(zip(layers, (1, 1, 2, 2), strict=True)):
        found = nn.functional.gelu(found) if index else found
        found = layer.norm(nn.functional.conv2d(found, layer.conv.weight, stride=stride, padding=1))
    assert torch.equal(model.stem(images), found)
    assert found.shape == (1, 16, 5, 6)


@torch.no_grad()
def test_features_pyramid_and_smallest_image() -> None:
    config = replace(SMALL, stem_strides=(1, 1, 2, 2))
    model = trained(config)
    assert {info["reduction"] for info in model.feature_info} == {4}
    with pytest.raises(XCiTError, match="smaller than one patch of 4x4"):
        model(torch.zeros(1, 3, 3, 8))
    pyramid = XCiTPyramid(backbone_of(config)).eval()
    assert [tuple(maps.shape[2:]) for maps in pyramid(torch.zeros(1, 3, 64, 96))] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with pytest.raises(XCiTError, match="patches of at most 16 pixels per side, not 32"):
        XCiTPyramid(backbone_of(replace(SMALL, stem_strides=(2, 2, 2, 2, 2))))


def test_counting_follows() -> None:
    """Compares FLOPs for CIFAR images and patches of 4 (64 tokens): only the stem's convolutions differ."""
    config = replace(SMALL, stem_strides=(1, 1, 2, 2))
    found, usual = complexity(config, 32), complexity(SMALL, 128)
    assert (found.num_tokens, usual.num_tokens) == (64, 64)
    widths = (3, 2, 4, 8, 16)

    def stem(pixels: tuple[int, ...]) -> int:
        return sum((9 * a + 2) * b * n for a, b, n in zip(widths, widths[1:], pixels, strict=False))

    difference = stem((32 * 32, 32 * 32, 16 * 16, 64)) - stem((64 * 64, 32 * 32, 16 * 16, 64))
    assert found.flops - usual.flops == difference
    assert found.params == usual.params


def test_storing_keeps_them_and_the_first_files_load(tmp_path: Path) -> None:
    model = trained(replace(SMALL, stem_strides=(1, 1, 2, 2)))
    save_model(model, tmp_path / "model.safetensors")
    found = get_model(tmp_path / "model.safetensors")
    assert found.config == model.config
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(images), model(images))
    other: Any = get_model(tmp_path / "model.safetensors", stem_strides=(2, 2, 2, 2))
    assert (other.config.patch_size, other.config.stem_strides) == (16, ())
    with pytest.raises(XCiTError, match=r"its stem has strides 1, 1, 2, 2, but the model's stem has 2, 2, 2, 2"):
        load_weights(XCiT(SMALL), tmp_path / "model.safetensors")
