"""The records against a copy of the published table, field by field."""

import json
from pathlib import Path

import pytest

from xcit.models import Preprocessing, XCiTConfig
from xcit.zoo.architectures import ARCHITECTURES, PUBLISHED_ARCHITECTURES
from xcit.zoo.checkpoints import CHECKPOINTS, PACKAGED
from xcit.zoo.imagenet import imagenet_class_ids, imagenet_class_names

ROWS = json.loads((Path(__file__).parents[2] / "data" / "zoo.json").read_text())

WIDTHS_AND_HEADS = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8), "large": (768, 16)}


def test_the_records_are_the_42_rows_and_the_packaged_model() -> None:
    assert list(CHECKPOINTS) == [row["name"] for row in ROWS] + [PACKAGED.name]
    assert len(ROWS) == 42


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_record_is_its_published_row(row: dict[str, object]) -> None:
    record = CHECKPOINTS[str(row["name"])]
    assert record.name == row["name"]
    assert record.architecture == row["architecture"]
    assert record.config is ARCHITECTURES[record.architecture]
    assert record.recipe == row["config"]
    assert record.distilled is row["distilled"]
    assert record.preprocessing == Preprocessing(image_size=row["image_size"], resize_to=row["image_size"])
    assert (record.dataset, record.task, record.licence) == ("ImageNet-1k", "image-classification", "Apache-2.0")
    assert record.packaged is None

    mmpretrain, official = record.accuracies
    assert (mmpretrain.measured_by, official.measured_by) == ("mmpretrain", "official")
    assert (mmpretrain.top1, mmpretrain.top5) == (row["top1_mmpretrain"], row["top5_mmpretrain"])
    assert (official.top1, official.top5) == (row["top1_official"], None)

    hub, by_authors, by_mmpretrain = record.sources
    assert (hub.kind, hub.location, hub.filename) == ("huggingface", f"timm/{row['timm']}", "model.safetensors")
    assert (by_authors.kind, by_authors.location) == ("url", row["url_official"])
    assert (by_mmpretrain.kind, by_mmpretrain.location) == ("url", row["url_mmpretrain"])
    for source in (by_authors, by_mmpretrain):
        assert source.filename == source.location.rsplit("/", 1)[1]
    # The only digest that was published: in the name of mmpretrain's file.
    assert (hub.sha256, by_authors.sha256) == (None, None)
    assert by_mmpretrain.sha256 == str(row["url_mmpretrain"])[-12:-4]


def test_architectures_are_the_published_shapes() -> None:
    assert set(PUBLISHED_ARCHITECTURES) == {str(row["architecture"]) for row in ROWS}
    for name, config in PUBLISHED_ARCHITECTURES.items():
        size, depth, patch = name.split("-")
        width, heads = WIDTHS_AND_HEADS[size]
        assert config == XCiTConfig(
            patch_size=int(patch.removeprefix("p")),
            embed_dim=width,
            num_heads=heads,
            depth=int(depth),
            layer_scale=1.0 if depth == "12" else 1e-5,
            tokens_norm=size != "nano",
            mlp_ratio=4.0,
            qkv_bias=True,
            cls_depth=2,
            in_channels=3,
            num_classes=1000,
            global_pool="cls",
            drop_path_rate=0.0,
        )


def test_names_and_aliases_are_unique_over_the_zoo_whatever_their_case() -> None:
    names = [name.lower() for record in CHECKPOINTS.values() for name in (record.name, *record.aliases)]
    assert len(names) == len(set(names))


def test_the_packaged_model_needs_no_source() -> None:
    assert (PACKAGED.sources, PACKAGED.packaged) == ((), "xcit-pico-fashion-mnist.safetensors")
    assert PACKAGED.preprocessing.image_size == 28
    assert (PACKAGED.config.in_channels, PACKAGED.config.num_classes) == (1, 10)


def test_imagenet_table() -> None:
    wnids, names = imagenet_class_ids(), imagenet_class_names()
    assert len(wnids) == len(names) == 1000
    assert sorted(set(wnids)) == list(wnids)
    assert len(set(names)) == 1000
    assert all(wnid[0] == "n" and wnid[1:].isdecimal() and len(wnid) == 9 for wnid in wnids)
    assert all(name == name.strip() and name for name in names)
    rows = dict(zip(wnids, enumerate(names), strict=True))
    assert rows["n01440764"] == (0, "tench")
    assert rows["n02099601"] == (207, "golden retriever")
    assert rows["n02123045"][0] == 281
    assert "tabby" in rows["n02123045"][1]
    assert rows["n15075141"][0] == 999
    assert "toilet" in rows["n15075141"][1]
