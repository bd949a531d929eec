"""Tests UperNet and Semantic FPN against plain functions of the published heads, with published parameter names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiTConfig
from xcit.models.segmentation import Segmenter, SegmenterConfig, SegmenterKind, SegmenterOutput, build_segmenter
from xcit.weights.dense import SEM_FPN, UPERNET, dense_from_native

KINDS: tuple[SegmenterKind, ...] = ("upernet", "sem-fpn")
State = Mapping[str, Tensor]


def new(kind: SegmenterKind, patch_size: int = 16, num_classes: int = 5) -> Segmenter:
    torch.manual_seed(0)
    backbone = XCiTConfig(
        patch_size=patch_size, embed_dim=16, depth=6, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    config = SegmenterConfig(kind=kind, backbone=backbone, num_classes=num_classes, channels=12, auxiliary_channels=10)
    model = build_segmenter(config).eval()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.ndim == 1:
                value.add_(torch.rand_like(value), alpha=0.5)
    return model


# The published heads as plain functions, with published parameter names


def conv_module(state: State, name: str, image: Tensor) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    image = F.conv2d(image, weight, padding=weight.shape[-1] // 2)
    norm = [state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(image, norm[0], norm[1], norm[2], norm[3]))


def up(image: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(image, size=like.shape[2:], mode="bilinear", align_corners=False)


def classify(state: State, head: str, image: Tensor) -> Tensor:
    return F.conv2d(image, state[f"{head}.conv_seg.weight"], state[f"{head}.conv_seg.bias"])


def published_upernet(state: State, x: Sequence[Tensor]) -> Tensor:
    head = "decode_head"
    pooled = [
        up(conv_module(state, f"{head}.psp_modules.{i}.1", F.adaptive_avg_pool2d(x[3], size)), x[3])
        for i, size in enumerate((1, 2, 3, 6))
    ]
    lateral = [conv_module(state, f"{head}.lateral_convs.{i}", x[i]) for i in range(3)]
    lateral.append(conv_module(state, f"{head}.bottleneck", torch.cat([x[3], *pooled], 1)))
    for i in (3, 2, 1):
        lateral[i - 1] = lateral[i - 1] + up(lateral[i], lateral[i - 1])
    f = [conv_module(state, f"{head}.fpn_convs.{i}", lateral[i]) for i in range(3)] + [lateral[3]]
    f = [f[0]] + [up(level, f[0]) for level in f[1:]]
    return classify(state, head, conv_module(state, f"{head}.fpn_bottleneck", torch.cat(f, 1)))


def published_auxiliary(state: State, x: Sequence[Tensor]) -> Tensor:
    return classify(state, "auxiliary_head", conv_module(state, "auxiliary_head.convs.0", x[2]))


def published_sem_fpn(state: State, x: Sequence[Tensor]) -> Tensor:
    def neck(name: str, image: Tensor) -> Tensor:
        weight = state[f"neck.{name}.conv.weight"]
        return F.conv2d(image, weight, state[f"neck.{name}.conv.bias"], padding=weight.shape[-1] // 2)

    lateral = [neck(f"lateral_convs.{i}", x[i]) for i in range(4)]
    for i in (3, 2, 1):
        lateral[i - 1] = lateral[i - 1] + F.interpolate(lateral[i], size=lateral[i - 1].shape[2:], mode="nearest")
    p = [neck(f"fpn_convs.{i}", lateral[i]) for i in range(4)]

    def scale(name: str, image: Tensor, doubles: bool) -> Tensor:
        image = conv_module(state, f"decode_head.scale_heads.{name}", image)
        return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False) if doubles else image

    out = scale("0.0", p[0], False)
    for level, names in ((1, ["1.0"]), (2, ["2.0", "2.2"]), (3, ["3.0", "3.2", "3.4"])):
        image = p[level]
        for name in names:
            image = scale(name, image, True)
        out = out + up(image, out)
    return classify(state, "decode_head", out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch_size", [8, 16])
@pytest.mark.parametrize("size", [(130, 203), (97, 61), (64, 96)])
@torch.no_grad()
def test_the_published_heads(kind: SegmenterKind, patch_size: int, size: tuple[int, int]) -> None:
    model, images = new(kind, patch_size), torch.randn(2, 3, *size)
    state = dense_from_native(model.state_dict(), UPERNET if kind == "upernet" else SEM_FPN)
    maps = model.backbone(images)
    plain = (published_upernet if kind == "upernet" else published_sem_fpn)(state, maps)
    found = model(images)
    assert found.shape == (2, 5, *size)
    torch.testing.assert_close(found, up(plain, images), rtol=1e-5, atol=1e-5)
    output = model(images, with_auxiliary=True)
    assert isinstance(output, SegmenterOutput)
    assert torch.equal(output.logits, found)
    if kind == "upernet":
        assert output.auxiliary is not None
        torch.testing.assert_close(output.auxiliary, up(published_auxiliary(state, maps), images), rtol=1e-5, atol=1e-5)
    else:
        assert output.auxiliary is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_any_size_from_one_patch_up(kind: SegmenterKind) -> None:
    for patch_size in (4, 8, 16):
        model = new(kind, patch_size)
        for height, width in ((patch_size, patch_size), (patch_size, 5 * patch_size + 3)):
            assert model(torch.randn(1, 3, height, width)).shape == (1, 5, height, width)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_fused_copy_gives_the_same(kind: SegmenterKind) -> None:
    model, images = new(kind), torch.randn(1, 3, 70, 99)
    before = model(images)
    fused = model.fuse()
    torch.testing.assert_close(fused(images), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(images), before)
    assert model.get_parameter("head.classifier.weight").requires_grad
    assert not any(value.requires_grad for value in fused.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: SegmenterKind) -> None:
    model = new(kind).train()
    model.set_grad_checkpointing()
    output = model(torch.randn(2, 3, 64, 96), with_auxiliary=True)
    total = output.logits.square().mean() + (0 if output.auxiliary is None else output.auxiliary.square().mean())
    total.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_first_weights() -> None:
    config = replace(new("sem-fpn").config, num_classes=150, channels=128)
    torch.manual_seed(0)
    model: Any = build_segmenter(config)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    fan_out = 128 * 9
    weight = model.head.levels[3][1].conv.weight
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert not any(bias.any() for name, bias in model.named_parameters() if name.startswith("neck") and "bias" in name)


def test_impossible_configs() -> None:
    config = new("upernet").config
    with pytest.raises(XCiTError, match="the backbone has class attention or a classifier"):
        replace(config, backbone=XCiTConfig())
    with pytest.raises(XCiTError, match="channels is 0, but must be at least 1"):
        replace(config, channels=0)
    with pytest.raises(XCiTError, match="kind is 'unet'"):
        replace(config, kind="unet")  # type: ignore[arg-type]
    with pytest.raises(XCiTError, match="set num_classes above 0"):
        build_segmenter(replace(config, num_classes=0))
