"""Compares the records of robust models with what RobustBench and the authors published."""

from pathlib import Path

import pytest

import xcit
from xcit.errors import XCiTError
from xcit.zoo import find_checkpoint, list_models
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.robust import ROBUST

# RobustBench's model_info: clean_acc, autoattack_acc, eps.
PUBLISHED = {
    "s12_imagenet": (72.34, 41.78, "4/255"),
    "m12_imagenet": (74.04, 45.24, "4/255"),
    "l12_imagenet": (73.76, 47.60, "4/255"),
    "s12_cifar10": (90.06, 56.14, "8/255"),
    "m12_cifar10": (91.30, 57.27, "8/255"),
    "l12_cifar10": (91.73, 57.58, "8/255"),
    "s12_cifar100": (67.34, 32.19, "8/255"),
    "m12_cifar100": (69.21, 34.21, "8/255"),
    "l12_cifar100": (70.76, 35.08, "8/255"),
}
SHAPES = {"s": ("small", 384, 8), "m": ("medium", 512, 8), "l": ("large", 768, 16)}


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_record_is_what_was_published(key: str) -> None:
    model, data = key.split("_")
    record = find_checkpoint(f"debenedetti2022light_xcit_{key}_linf")
    assert find_checkpoint(f"Debenedetti2022Light_XCiT-{model.upper()}_{data}_Linf") is record
    clean, attacked, size = PUBLISHED[key]
    assert [(one.measured_by, one.top1, one.attack) for one in record.accuracies] == [
        ("RobustBench", clean, ""),
        ("RobustBench", attacked, f"AutoAttack, Linf {size}"),
    ]
    name, width, heads = SHAPES[model[0]]
    config = record.config
    assert (config.embed_dim, config.num_heads, config.depth, config.tokens_norm) == (width, heads, 12, True)
    spec = record.preprocessing
    if data == "imagenet":
        assert record.architecture == f"{name}-12-p16"
        assert (config.strides, config.num_classes) == ((2, 2, 2, 2), 1000)
        # Images in 0..1 are not normalised.
        assert (spec.image_size, spec.resize_to, spec.mean, spec.std) == (224, 224, (0.0,) * 3, (1.0,) * 3)
    else:
        assert record.architecture == f"{name}-12-p4"
        assert (config.strides, config.patch_size) == ((1, 1, 2, 2), 4)
        assert (spec.image_size, config.num_classes) == (32, int(data.removeprefix("cifar")))
    (source,) = record.sources
    file = f"debenedetti2022light-xcit-{model[0]}-{data}-linf.pth.tar"
    assert source.location == f"https://github.com/RobustBench/robustbench/releases/download/v1.1/{file}"
    assert record.licence == "MIT"


def test_there_are_twelve_and_three_are_only_for_browsers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path))
    assert len(ROBUST) == 12
    by_hand = [record for record in ROBUST if not record.sources]
    assert [record.name for record in by_hand] == [
        f"debenedetti2022light_xcit_{letter}12_imagenet_linf_eps8" for letter in "sml"
    ]
    for record in by_hand:
        with pytest.raises(XCiTError) as caught:
            xcit.get_model(record.name, pretrained=True)
        assert str(caught.value) == (
            f"{record.name}: a program can't download its file: download it with a browser from {record.by_hand}, "
            "and pass it as pretrained=FILE or --weights FILE"
        )
    assert all(record.by_hand.startswith("https://drive.google.com/file/d/") for record in ROBUST)


@pytest.mark.parametrize("name", ["xcit-medium-12-p16", "xcit_large_12_p16", "Medium-12-P16", "xcit-small-12-p4"])
def test_their_architectures_are_had_by_name(name: str) -> None:
    key = name.lower().replace("_", "-").removeprefix("xcit-")
    assert xcit.get_model(name, num_classes=7).config == xcit.get_model(key, num_classes=7).config
    assert xcit.get_model(name).config == ARCHITECTURES[key]
    assert xcit.get_backbone(name).config.cls_depth == 0
    for call in (xcit.get_model, xcit.get_backbone):
        with pytest.raises(XCiTError, match=f"{name} is an architecture: no weights were published under this name"):
            call(name, pretrained=True)


def test_patterns_of_timms_and_the_official_names_find_our_records() -> None:
    nano = list_models("xcit-nano")
    assert list_models("xcit_nano*") == list_models("xcit_nano_12_p[18]*_*") == nano
    assert list_models("*.fb_dist_in1k") == [name for name in list_models("xcit") if "3rdparty-dist" in name]
    assert list_models("timm/xcit_tiny_24_p8_384*") == ["xcit-tiny-24-p8_3rdparty-dist_in1k-384px"]
    assert list_models("Debenedetti2022Light_XCiT-S12") == [
        f"debenedetti2022light_xcit_s12_{data}_linf" for data in ("cifar100", "cifar10", "imagenet")
    ]
    assert list_models("xcit-nano*", exclude_patterns="xcit_nano_12_p16*") == [n for n in nano if "p8" in n]
