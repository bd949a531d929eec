"""Our models through timm's own functions."""

from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import xcit
from xcit.errors import XCiTError
from xcit.integrations.timm import NAMES
from xcit.models import XCiT
from xcit.zoo.names import find_checkpoint, is_known

NANO = "xcit-nano-12-p16"
IMAGES = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def test_all_architectures_and_classifiers_are_registered_beside_timms_own() -> None:
    known = set(timm.list_models("xcit-*"))
    assert {name for name in NAMES if name.startswith("xcit-")} == known
    assert len(known) >= 42 + 14
    assert type(timm.create_model("xcit_nano_12_p16_224")).__module__ == "timm.models.xcit"


@torch.no_grad()
def test_create_model() -> None:
    model = timm.create_model(NANO, num_classes=7, drop_path_rate=0.1)
    assert isinstance(model, XCiT)
    assert (model.num_classes, model.config.drop_path_rate, model.training) == (7, 0.1, True)
    assert model.eval()(IMAGES).shape == (2, 7)
    grey: Any = timm.create_model(NANO, in_chans=1, num_classes=0, global_pool="avg")
    assert grey.eval()(IMAGES[:, :1]).shape == (2, 128)
    assert grey.get_classifier() is grey.head


@torch.no_grad()
def test_a_packaged_models_weights_and_data_config() -> None:
    model = timm.create_model("xcit-pico-fashion-mnist", pretrained=True, in_chans=1).eval()
    own = xcit.get_model("packaged", pretrained=True)
    images = torch.rand(1, 1, 28, 28)
    assert torch.equal(model(images), own(images))
    data = resolve_model_data_config(model)
    assert data["input_size"] == (1, 28, 28)
    assert (data["mean"], data["std"], data["crop_pct"]) == ((0.2860,), (0.3530,), 1.0)


@torch.no_grad()
def test_weights_for_another_number_of_channels() -> None:
    grey = torch.rand(2, 1, 28, 28)
    own = xcit.get_model("packaged", pretrained=True)
    for channels in (3, 4):
        model = timm.create_model("xcit-pico-fashion-mnist", pretrained=True, in_chans=channels).eval()
        torch.testing.assert_close(model(grey.expand(-1, channels, -1, -1)), own(grey))
        data = resolve_model_data_config(model)
        assert (data["input_size"], data["mean"]) == ((channels, 28, 28), (0.2860,) * channels)


def test_what_is_known_of_a_name_before_there_is_a_model() -> None:
    cfg = timm.get_pretrained_cfg("xcit-small-12-p8_3rdparty-dist_in1k-384px")
    assert (cfg.input_size, cfg.num_classes, cfg.architecture) == ((3, 384, 384), 1000, cfg.architecture)
    assert cfg.has_weights
    shapes = {name for name in NAMES if not is_known(name)}
    assert shapes == {
        *(f"xcit-{size}-12-p16" for size in ("medium", "large")),
        *(f"xcit-{size}-12-p4" for size in ("small", "medium", "large")),
    }
    by_hand = {
        name for name in {*NAMES} - shapes if not (find_checkpoint(name).sources or find_checkpoint(name).packaged)
    }
    assert {*NAMES} & set(timm.list_models(pretrained=True)) == {*NAMES} - shapes - by_hand
    model: Any = timm.create_model(NANO)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


def test_on_a_device() -> None:
    model = timm.create_model(NANO, device="meta", dtype=torch.bfloat16)
    assert {(value.device.type, value.dtype) for value in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("out_indices", [(3, 5, 7, 11), (2,), 3])
@torch.no_grad()
def test_features_only(out_indices: int | tuple[int, ...]) -> None:
    model: Any = timm.create_model(NANO, features_only=True, out_indices=out_indices).eval()
    assert type(model).__name__ == "FeatureGetterNet"
    found = model(IMAGES)
    count = out_indices if isinstance(out_indices, int) else len(out_indices)
    assert [tuple(features.shape) for features in found] == [(2, 128, 3, 4)] * count
    assert model.feature_info.channels() == [128] * count
    assert model.feature_info.reduction() == [16] * count


@torch.no_grad()
def test_pruned_to_the_last_block_that_is_asked_for() -> None:
    torch.manual_seed(0)
    model = XCiT(xcit.XCiTConfig(embed_dim=16, depth=4, num_heads=2)).eval()
    expected: Any = model.forward_intermediates(IMAGES, (0, 2), intermediates_only=True)
    assert model.prune_intermediate_layers((0, -2)) == [0, 2]
    assert (model.config.depth, model.config.cls_depth, model.num_prefix_tokens) == (3, 0, 0)
    found: Any = model.forward_intermediates(IMAGES, (0, 2), intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not any(name.startswith(("cls_", "head")) for name, _ in model.named_parameters())


def test_what_timms_tools_read() -> None:
    model = XCiT(xcit.XCiTConfig(embed_dim=16, depth=2, num_heads=2))
    assert (model.num_prefix_tokens, model.head_hidden_size, model.no_weight_decay()) == (1, 16, {"cls_token"})
    assert model.feature_info[1] == {"num_chs": 16, "reduction": 16, "module": "blocks.1"}
    model.pretrained_cfg = {"mean": (0.5,) * 3}
    assert model.default_cfg == {"mean": (0.5,) * 3}


def test_another_way_to_take_features_is_refused_in_one_line() -> None:
    with pytest.raises(XCiTError, match=f"^{NANO}: feature_cls is 'hook'"):
        timm.create_model(NANO, feature_cls="hook", features_only=True)


@torch.no_grad()
def test_channels_depth_and_pooling_with_weights() -> None:
    model: Any = timm.create_model(
        "xcit-pico-fashion-mnist", pretrained=True, in_chans=3, drop_path_rate=0.1, global_pool="avg"
    ).eval()
    own = xcit.get_model("packaged", pretrained=True, global_pool="avg")
    grey = torch.rand(1, 1, 28, 28)
    torch.testing.assert_close(model(grey.expand(-1, 3, -1, -1)), own(grey), atol=1e-5, rtol=1e-5)
    assert model.config.drop_path_rate == 0.1


def test_what_there_is_not_is_one_line() -> None:
    with pytest.raises(XCiTError, match="xcit-medium-12-p16 is an architecture: no weights were published"):
        timm.create_model("xcit-medium-12-p16", pretrained=True)
    with pytest.raises(TypeError, match="img_scale"):
        timm.create_model(NANO, img_scale=3)


@torch.no_grad()
def test_a_pyramid_has_the_maps_of_our_own() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(f"pyramid_{NANO}", features_only=True).eval()
    torch.manual_seed(0)
    expected = xcit.get_backbone(NANO, pyramid=True)(IMAGES)
    found = model(IMAGES)
    assert len(found) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert model.feature_info.channels() == [128] * 4
    assert model.feature_info.reduction() == [4, 8, 16, 32]


@pytest.mark.parametrize(("out_indices", "strides"), [((0, 1), [4, 8]), (2, [16, 32]), ((-1,), [32])])
def test_a_pyramid_of_fewer_maps_has_only_what_they_need(
    out_indices: int | tuple[int, ...], strides: list[int]
) -> None:
    model: Any = timm.create_model(f"pyramid_{NANO}", features_only=True, out_indices=out_indices, in_chans=1)
    maps = model(IMAGES[:, :1])
    assert [IMAGES.shape[-1] // features.shape[-1] for features in maps] == strides
    assert model.feature_info.reduction() == strides
    model.set_grad_checkpointing()
    sum(features.square().sum() for features in model(IMAGES[:, :1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_a_pyramid_on_a_packaged_models_weights() -> None:
    model = timm.create_model(
        "pyramid_xcit-pico-fashion-mnist", pretrained=True, in_chans=1, features_only=True, out_indices=(3,)
    )
    own = xcit.get_backbone("packaged", pretrained=True, pyramid=True)
    images = torch.rand(1, 1, 28, 28)
    assert torch.equal(model.eval()(images)[0], own(images)[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, f"pyramid_{NANO} returns only feature maps: pass features_only=True"),
        ({"features_only": True, "out_indices": (0, 4)}, r"out_indices is \(0, 4\): a pyramid has 4 maps"),
        ({"features_only": True, "out_indices": 0}, "out_indices is 0: a pyramid has 4 maps"),
    ],
)
def test_what_a_pyramid_can_not_do_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message) as error:
        timm.create_model(f"pyramid_{NANO}", **changes)
    assert "\n" not in str(error.value)
