"""Tests the pyramid against plain calls of the published layers, at sizes that the patch does not divide."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models import XCiTConfig, XCiTPyramid
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.pyramid import default_out_indices


def config(patch_size: int, depth: int = 6, in_channels: int = 3) -> XCiTConfig:
    return XCiTConfig(
        patch_size=patch_size,
        embed_dim=16,
        depth=depth,
        num_heads=2,
        cls_depth=0,
        num_classes=0,
        global_pool="none",
        in_channels=in_channels,
    )


def new(patch_size: int, depth: int = 6) -> XCiTPyramid:
    torch.manual_seed(0)
    model = XCiTPyramid(config(patch_size, depth)).eval()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.ndim == 1:
                value.add_(torch.rand_like(value), alpha=0.5)
    return model


def published_maps(model: XCiTPyramid, maps: list[Tensor]) -> list[Tensor]:
    """Returns the maps of the published pyramid, written with functions of torch."""
    state = dict(model.pyramid.state_dict())

    def double(image: Tensor, name: str) -> Tensor:
        return F.conv_transpose2d(image, state[f"{name}.weight"], state[f"{name}.bias"], stride=2)

    if model.config.patch_size == 8:
        return [double(maps[0], "stride4.0"), maps[1], F.max_pool2d(maps[2], 2), F.max_pool2d(maps[3], 4)]
    norm = [state[f"stride4.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    first = double(F.gelu(F.batch_norm(double(maps[0], "stride4.0"), *norm)), "stride4.3")
    return [first, double(maps[1], "stride8.0"), maps[2], F.max_pool2d(maps[3], 2)]


@pytest.mark.parametrize(
    ("patch_size", "sizes"),
    [(16, [(36, 52), (18, 26), (9, 13), (4, 6)]), (8, [(34, 52), (17, 26), (8, 13), (4, 6)])],
)
@torch.no_grad()
def test_the_published_layers_at_an_odd_size(patch_size: int, sizes: list[tuple[int, int]]) -> None:
    model, images = new(patch_size), torch.randn(2, 3, 130, 203)
    tokens = model.xcit.forward_intermediates(images, [1, 2, 3, 5], intermediates_only=True)
    assert isinstance(tokens, list)
    maps = model(images)
    assert [tuple(map.shape) for map in maps] == [(2, 16, *size) for size in sizes]
    for found, expected in zip(maps, published_maps(model, tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
@torch.no_grad()
def test_any_size_from_one_patch_up(patch_size: int) -> None:
    model = new(patch_size)
    for height, width in ((1, 1), (1, 3), (2, 5)):
        images = torch.randn(1, 3, patch_size * height, patch_size * width)
        maps = model(images)
        assert all(min(map.shape) >= 1 for map in maps)
        assert maps[0].shape[-2:] == (patch_size * height // 4, patch_size * width // 4)


def test_the_published_blocks() -> None:
    assert default_out_indices(12) == (3, 5, 7, 11)
    assert default_out_indices(24) == (7, 11, 15, 23)
    assert XCiTPyramid(config(8), out_indices=(0, 1, 4, 5)).out_indices == (0, 1, 4, 5)
    assert len(new(8, depth=1)(torch.randn(1, 3, 8, 8))) == 4


def test_every_parameter_learns() -> None:
    model = new(16).train()
    sum(map.square().mean() for map in model(torch.randn(2, 3, 40, 50))).backward()
    assert all(value.grad is not None and value.grad.any() for value in model.parameters())


@pytest.mark.parametrize("indices", [(0, 1, 2), (0, 2, 1, 3), (0, 1, 2, 6), (-1, 0, 1, 2)])
def test_impossible_blocks(indices: tuple[int, ...]) -> None:
    with pytest.raises(XCiTError, match="out_indices"):
        XCiTPyramid(config(8), indices)


def test_a_class_token_is_refused() -> None:
    with pytest.raises(XCiTError, match="set cls_depth to 0, not 2"):
        XCiTPyramid(XCiTConfig())


def test_fusing_folds_the_norm_and_leaves_what_is_not_plain() -> None:
    torch.manual_seed(0)
    model = MaskRCNN(MaskRCNNConfig(backbone=config(16), num_classes=3, channels=8, box_features=8)).eval()
    norm = model.get_submodule("backbone.pyramid.stride4.1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.backbone(images)
        fused = model.fuse()
        assert isinstance(fused.get_submodule("backbone.pyramid.stride4.1"), nn.Identity)
        found = fused.backbone(images)
        assert all(level.is_contiguous(memory_format=torch.channels_last) for level in found)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # The fused model calls the hook too.
        norm.register_forward_hook(lambda module, inputs, output: 2 * output)
        changed, heard = model.backbone(images), model.fuse().backbone(images)
        assert not torch.allclose(changed[0], expected[0], rtol=1e-3)
        torch.testing.assert_close(heard, changed, rtol=1e-4, atol=1e-5)
