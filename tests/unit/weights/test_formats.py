import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.weights.formats import FORMATS, NATIVE_TO, Format, detect_format, from_native, to_native

DENSE_KEYS = Path(__file__).parents[2] / "data" / "dense_keys_sample.json"

TINY_12_P8 = XCiTConfig(patch_size=8, embed_dim=192, depth=12, num_heads=4)
NANO_12_P16 = XCiTConfig(patch_size=16, embed_dim=128, depth=12, num_heads=4, tokens_norm=False)


def small_state(**changes: Any) -> dict[str, Tensor]:
    """Returns a state dict in our own format with random numbers, including random counters."""
    config = XCiTConfig(**{"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5} | changes)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.randint(1, 2**40, tensor.shape, generator=generator)
        for name, tensor in XCiT(config).state_dict().items()
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("format", FORMATS)
def test_every_table_is_bijective_and_complete(format: Format) -> None:
    rows = NATIVE_TO[format]
    assert rows.keys() == NATIVE_TO["xcit"].keys()
    assert len(set(rows.values())) == len(rows)


@pytest.mark.parametrize("patch_size", [4, 8, 16])
@pytest.mark.parametrize("format", FORMATS)
def test_each_format_names_every_tensor_and_comes_back(format: Format, patch_size: int) -> None:
    native = small_state(patch_size=patch_size)
    published = from_native(native, format)
    assert detect_format(published) == format
    assert_same(to_native(published, format), native)
    assert_same(to_native(dict(reversed(published.items())), format), native)
    if format != "xcit":
        unchanged = published.keys() & native.keys()
        assert {name for name in unchanged if ".mlp." not in name} <= {
            "cls_token",
            "norm.weight",
            "norm.bias",
            "head.weight",
            "head.bias",
        }


@pytest.mark.parametrize("format", FORMATS)
def test_without_biases_of_q_k_v_and_without_a_head(format: Format) -> None:
    native = small_state(qkv_bias=False, num_classes=0)
    published = from_native(native, format)
    assert detect_format(published) == format
    assert_same(to_native(published, format), native)


def test_block_numbers_of_two_digits_keep_their_order() -> None:
    native = small_state(depth=12, patch_size=8)
    assert torch.equal(from_native(native, "timm")["blocks.11.gamma3"], native["blocks.11.scale_lpi"])
    assert torch.equal(
        from_native(native, "mmpretrain")["backbone.xca_layers.10.ffn.layers.0.0.weight"],
        native["blocks.10.mlp.fc1.weight"],
    )
    assert torch.equal(from_native(native, "official")["patch_embed.proj.4.0.weight"], native["stem.2.conv.weight"])


def test_official_class_attention_is_one_matrix_of_q_then_k_then_v() -> None:
    native = small_state()
    official = from_native(native, "official")
    fused = official["cls_attn_blocks.1.attn.qkv.weight"]
    assert fused.shape == (48, 16)
    assert torch.equal(fused[:16], native["cls_blocks.1.attn.q.weight"])
    assert torch.equal(fused[16:32], native["cls_blocks.1.attn.k.weight"])
    assert torch.equal(fused[32:], native["cls_blocks.1.attn.v.weight"])
    assert official["cls_attn_blocks.0.attn.qkv.bias"].shape == (48,)
    assert not any(".attn.q." in name for name in official)
    assert "pos_embeder.token_projection.weight" in official


@pytest.mark.parametrize(
    ("name", "config"), [("xcit_nano_12_p16_224", NANO_12_P16), ("xcit_tiny_12_p8_224", TINY_12_P8)]
)
def test_timm_names_are_those_of_timm(name: str, config: XCiTConfig) -> None:
    theirs, ours = timm.create_model(name, pretrained=False), XCiT(config)
    their_state, our_state = theirs.state_dict(), ours.state_dict()
    assert detect_format(their_state) == "timm"
    renamed = from_native(our_state, "timm")
    assert {key: tensor.shape for key, tensor in renamed.items()} == {
        key: tensor.shape for key, tensor in their_state.items()
    }
    ours.load_state_dict(to_native(their_state, "timm"))
    theirs.load_state_dict(renamed)


def test_timm_reads_our_official_names_with_its_own_converter() -> None:
    from timm.models.xcit import checkpoint_filter_fn

    theirs = timm.create_model("xcit_nano_12_p16_224", pretrained=False, num_classes=5)
    native = XCiT(XCiTConfig(embed_dim=128, depth=12, num_heads=4, num_classes=5)).state_dict()
    converted = checkpoint_filter_fn(from_native(native, "official"), theirs)
    assert_same(converted, from_native(native, "timm"))


def test_mmpretrain_names() -> None:
    published = from_native(small_state(), "mmpretrain")
    layers = ["norm1", "norm2", "norm3", "attn.qkv", "attn.proj", "ffn.layers.0.0", "ffn.layers.1"]
    layers += ["local_mp.conv1.conv", "local_mp.conv1.bn", "local_mp.conv2.conv"]
    block = {name for name in published if name.startswith("backbone.xca_layers.1.") and name.endswith(".weight")}
    assert block == {f"backbone.xca_layers.1.{layer}.weight" for layer in layers}
    outside = {name for name in published if ".xca_layers." not in name and ".ca_layers." not in name}
    assert {name for name in outside if "patch_embed" not in name} == {
        "backbone.cls_token",
        "backbone.pos_embed.token_projection.conv.weight",
        "backbone.pos_embed.token_projection.conv.bias",
        "backbone.norm.weight",
        "backbone.norm.bias",
        "head.fc.weight",
        "head.fc.bias",
    }
    assert "backbone.patch_embed.proj.3.bn.num_batches_tracked" in outside


def test_backbone_of_a_dense_checkpoint_is_official() -> None:
    keys: dict[str, list[int]] = json.loads(DENSE_KEYS.read_text())
    backbone = {
        name.removeprefix("backbone."): torch.empty(shape)
        for name, shape in keys.items()
        if name.startswith("backbone.") and ".fpn" not in name
    }
    assert detect_format(backbone) == "official"
    config = XCiTConfig(embed_dim=192, depth=12, num_heads=4, cls_depth=0, num_classes=0, global_pool="none")
    expected = {name: tensor.shape for name, tensor in XCiT(config).state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_native(backbone, "official").items()} == expected


def test_unknown_names_pass_through() -> None:
    extra = {
        "fpn1.0.weight": torch.ones(1),
        "patch_embed.proj.1.0.weight": torch.ones(1),
        "blocks.007.gamma1": torch.ones(1),
    }
    native = small_state()
    for format in FORMATS:
        state = to_native(from_native(native, format) | extra, format)
        assert_same(state, native | extra)


def test_parts_that_make_no_whole_stay_as_they_are() -> None:
    native = small_state()
    del native["cls_blocks.0.attn.k.weight"]
    native["cls_blocks.1.attn.v.bias"] = torch.zeros(15)
    official = from_native(native, "official")
    assert "cls_attn_blocks.0.attn.q.weight" in official
    assert "cls_attn_blocks.1.attn.q.bias" in official
    assert_same(to_native(official, "official"), native)
    uneven = {
        "cls_attn_blocks.0.attn.qkv.weight": torch.zeros(16, 4),
        "cls_attn_blocks.1.attn.qkv.bias": torch.zeros(()),
    }
    assert_same(to_native(uneven, "official"), uneven)


def test_mixed_formats_are_an_error() -> None:
    native = small_state()
    mixed = from_native(native, "timm") | {"stem.0.conv.weight": torch.ones(1)}
    with pytest.raises(XCiTError, match=r"'stem\.0\.conv\.weight'"):
        to_native(mixed, "timm")


def test_other_models_have_no_format() -> None:
    assert detect_format([]) is None
    assert detect_format(["head.weight", "head.bias", "norm.weight"]) is None
    # A ViT shares most of these names.
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=1)
    assert detect_format(vit.state_dict()) is None
    assert detect_format(["stages.0.blocks.0.xca.temperature"]) is None
