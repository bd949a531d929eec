"""Tests changes of a named model with weights, and compares them with timm's where timm has the same changes."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from timm.models.xcit import Xcit

import xcit
from xcit.errors import XCiTError
from xcit.models.features import FeatureMaps
from xcit.zoo import save_model

IMAGES = torch.rand(2, 5, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Xcit, Path]:
    """Returns timm's nano model with random weights, and a file with these weights that has a published file name."""
    torch.manual_seed(0)
    model: Any = timm.create_model("xcit_nano_12_p16_224", pretrained=False)
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.temperature, 1.0, 0.1)
    path = tmp_path / "xcit_nano_12_p16_224.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@torch.no_grad()
def test_weights_for_three_channels_are_summed_or_repeated_as_timm_does(
    channels: int, weights: tuple[Xcit, Path]
) -> None:
    theirs, path = weights
    found: Any = xcit.get_model(path, in_channels=channels)
    name = "stem.0.conv.weight"
    expected = adapt_input_conv(channels, theirs.state_dict()["patch_embed.proj.0.0.weight"].clone())
    torch.testing.assert_close(found.state_dict()[name], expected, atol=0, rtol=1e-6)
    adapted = Xcit(patch_size=16, embed_dim=128, depth=12, num_heads=4, eta=1.0, tokens_norm=False, in_chans=channels)
    adapted.load_state_dict({**theirs.state_dict(), "patch_embed.proj.0.0.weight": expected})
    images = IMAGES[:, :channels]
    torch.testing.assert_close(found(images), adapted.eval()(images), atol=1e-5, rtol=1e-5)
    spec = found.info.preprocessing
    assert len(spec.mean) == len(spec.std) == channels
    assert found.info.assumed
    assert spec.mean[-1] == pytest.approx([0.449, 0.456, 0.406, 0.485, 0.456][channels - 1], abs=5e-4)
    for other in (
        xcit.get_model("xcit-nano-12-p16", pretrained=path, in_channels=channels),
        xcit.get_backbone(path, changes=xcit.zoo.changes.Changes(in_channels=channels)),
    ):
        torch.testing.assert_close(other.state_dict()[name], expected, atol=0, rtol=1e-6)


def test_the_same_number_of_channels_changes_nothing(weights: tuple[Xcit, Path]) -> None:
    found: Any = xcit.get_model(weights[1], in_channels=3)
    theirs: Any = weights[0]
    assert not found.info.assumed
    assert torch.equal(found.stem[0].conv.weight, theirs.patch_embed.proj[0][0].weight)


@torch.no_grad()
def test_pooling_and_stochastic_depth_keep_the_weights(weights: tuple[Xcit, Path]) -> None:
    theirs, path = weights
    images = IMAGES[:, :3]
    theirs.global_pool = "avg"
    for name in ("avg",):
        found: Any = xcit.get_model(path, global_pool=name, drop_path_rate=0.2)
        torch.testing.assert_close(found(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert found.config.drop_path_rate == found.blocks[3].drop_path_rate == 0.2
    token: Any = xcit.get_model(path, global_pool="token")
    assert token.config.global_pool == "cls"
    assert xcit.get_model("xcit-nano-12-p16", num_classes=0, global_pool="")(images).shape == (2, 13, 128)
    with pytest.raises(XCiTError, match="global_pool is 'max', but must be 'cls', 'avg' or 'none'"):
        xcit.get_model(path, global_pool="max")
    with pytest.raises(XCiTError, match="global_pool is for classifiers: a segmenter has no pooling"):
        xcit.get_model("sem-fpn_xcit-tiny-12-p16_80k_ade20k", global_pool="avg")


@pytest.mark.parametrize("out_indices", [None, 2, (3, 5, -1)])
@torch.no_grad()
def test_features_only_gives_timms_maps(
    out_indices: int | tuple[int, ...] | None, weights: tuple[Xcit, Path], tmp_path: Path
) -> None:
    path = weights[1]
    asked: dict[str, Any] = {} if out_indices is None else {"out_indices": out_indices}
    theirs: Any = timm.create_model(
        "xcit_nano_12_p16_224", features_only=True, pretrained=False, **asked, checkpoint_path=""
    )
    theirs.model.load_state_dict(
        {name: tensor for name, tensor in weights[0].state_dict().items() if name in theirs.model.state_dict()}
    )
    found = xcit.get_model(path, features_only=True, **asked)
    assert isinstance(found, FeatureMaps)
    images = IMAGES[:, :3]
    for ours, other in zip(found(images), theirs.eval()(images), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert found.feature_info.channels() == theirs.feature_info.channels()
    assert found.feature_info.reduction() == theirs.feature_info.reduction()
    assert found.feature_info.module_name() == theirs.feature_info.module_name()


def test_features_have_the_strides_of_the_stem() -> None:
    found: Any = xcit.get_model("xcit-nano-12-p16", features_only=True, stem_strides=(1, 1, 2, 2), out_indices=(2, 7))
    assert found.feature_info.reduction() == [4, 4]
    assert [tuple(maps.shape) for maps in found(IMAGES[:, :3])] == [(2, 128, 12, 16)] * 2
    with pytest.raises(XCiTError, match="features_only=True has no head"):
        xcit.get_model("xcit-nano-12-p16", features_only=True, num_classes=5)
    with pytest.raises(XCiTError, match="out_indices needs features_only=True"):
        xcit.get_model("xcit-nano-12-p16", out_indices=3)  # type: ignore[call-overload]


def test_the_channels_of_a_segmenter_and_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name in ("sem-fpn_xcit-tiny-12-p16_80k_ade20k", "mask-rcnn_xcit-tiny-12-p16_3x_coco"):
        three: Any = xcit.get_model(name)
        save_model(three, tmp_path / "dense.safetensors")
        four: Any = xcit.get_model(tmp_path / "dense.safetensors", in_channels=4, drop_path_rate=0.3)
        weight = three.backbone.xcit.stem[0].conv.weight
        expected = weight[:, [0, 1, 2, 0]] * 0.75
        torch.testing.assert_close(four.backbone.xcit.stem[0].conv.weight, expected, atol=0, rtol=1e-6)
        assert four.config.backbone.drop_path_rate == 0.3
    assert four.config.mean == (*three.config.mean, three.config.mean[0])


@torch.no_grad()
def test_a_pyramid_on_weights_with_strides(tmp_path: Path) -> None:
    """Of a segmenter for patches of 16, only the XCiT is loaded: patches of 4 need other layers to resize the maps."""
    changes = xcit.zoo.changes.Changes(stem_strides=(1, 1, 2, 2))
    torch.manual_seed(0)
    save_model(xcit.get_model("sem-fpn_xcit-tiny-12-p16_80k_ade20k"), tmp_path / "dense.safetensors")
    torch.save(xcit.get_model("xcit-tiny-12-p16").state_dict(), tmp_path / "plain.pth")
    for path in (tmp_path / "dense.safetensors", tmp_path / "plain.pth"):
        found: Any = xcit.get_backbone(path, pyramid=True, changes=changes)
        assert [tuple(maps.shape[2:]) for maps in found(IMAGES[:, :3])] == [(12, 16), (6, 8), (3, 4), (1, 2)]
        usual: Any = xcit.get_backbone(path, pyramid=True)
        assert torch.equal(found.xcit.blocks[3].xca.qkv.weight, usual.xcit.blocks[3].xca.qkv.weight)


def test_a_digest_tells_a_published_file_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    from dataclasses import replace

    from xcit.weights.files import read_checkpoint
    from xcit.weights.formats import from_native
    from xcit.zoo import origin
    from xcit.zoo.names import RECORDS

    name = "xcit-nano-12-p16_3rdparty_in1k"
    path = tmp_path / "download.pth"
    torch.save({"state_dict": from_native(xcit.get_model(name).state_dict(), "mmpretrain")}, path)
    assert origin.known_record(read_checkpoint(path)) is None
    record = RECORDS[name]
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = replace(record, sources=(*record.sources[:2], replace(record.sources[2], sha256=found)))
    monkeypatch.setitem(RECORDS, name, known)
    assert origin.known_record(read_checkpoint(path)) is known
    assert xcit.get_model(path).info == record.info()


@pytest.mark.parametrize("name", ["{}.pth", "{} (1).pth", "0123abcd-{}.pth", "{}.PTH"])
def test_a_published_name_is_known_as_downloads_leave_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name.format("xcit_nano_12_p16_224_dist")
    torch.save(xcit.get_model("xcit-nano-12-p16").state_dict(), path)
    assert xcit.get_model(path).info.name == "xcit-nano-12-p16_3rdparty-dist_in1k"
    # The file name is not enough: the weights must have the record's shape.
    torch.save(xcit.get_model("xcit-nano-12-p16", num_classes=5).state_dict(), path)
    assert xcit.get_model(path).info is None


def test_a_file_under_a_models_name_is_prepared_as_assumed(tmp_path: Path) -> None:
    model = xcit.get_model("xcit-nano-12-p16")
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    info: Any = xcit.get_model("xcit-nano-12-p16", pretrained=tmp_path / "mine.pth").info
    assert info.assumed
    assert info.preprocessing == xcit.zoo.find_checkpoint("xcit-nano-12-p16").preprocessing
    save_model(model, tmp_path / "mine.safetensors")
    assert xcit.get_model(tmp_path / "mine.safetensors").info is None


def test_a_key_without_a_file_is_a_mistake() -> None:
    with pytest.raises(XCiTError, match=re.escape("a key (ema) selects weights in a file")):
        xcit.get_model("xcit-nano-12-p16", pretrained=True, key="ema")
