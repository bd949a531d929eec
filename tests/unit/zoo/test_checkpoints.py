"""Compares the records with copies of the published tables, field by field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.zoo.architectures import ARCHITECTURES, PUBLISHED_ARCHITECTURES
from xcit.zoo.checkpoints import CHECKPOINTS, PACKAGED
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names
from xcit.zoo.robust import ROBUST

DATA = Path(__file__).parents[2] / "data"
ROWS = json.loads((DATA / "zoo.json").read_text())
DINO_ROWS = json.loads((DATA / "dino.json").read_text())

WIDTHS_AND_HEADS = {"nano": (128, 4), "tiny": (192, 4), "small": (384, 8), "medium": (512, 8), "large": (768, 16)}


def dino_name(row: dict[str, object]) -> str:
    """Returns the name of a record: "dino_xcit-small-12-p16_in1k" for the architecture "xcit_small_12_p16"."""
    return f"dino_{str(row['arch']).replace('_', '-')}_in1k"


def test_the_records_are_the_46_rows_the_robust_and_the_packaged_model() -> None:
    names = [row["name"] for row in ROWS] + [dino_name(row) for row in DINO_ROWS]
    assert list(CHECKPOINTS) == [*names, *(record.name for record in ROBUST), PACKAGED.name]
    assert (len(ROWS), len(DINO_ROWS)) == (42, 4)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_record_is_its_published_row(row: dict[str, Any]) -> None:
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
    # The only published digest is a part of the name of mmpretrain's file.
    assert (hub.sha256, by_authors.sha256) == (None, None)
    assert by_mmpretrain.sha256 == str(row["url_mmpretrain"])[-12:-4]


@pytest.mark.parametrize("row", DINO_ROWS, ids=dino_name)
def test_a_dino_record_is_its_published_row(row: dict[str, object]) -> None:
    record = CHECKPOINTS[dino_name(row)]
    assert record.architecture == str(row["arch"]).removeprefix("xcit_").replace("_", "-")
    assert record.config == replace(ARCHITECTURES[record.architecture], num_classes=0)
    assert record.recipe == record.name
    assert (record.dataset, record.task, record.licence) == ("ImageNet-1k", "image-features", "Apache-2.0")
    assert (record.packaged, record.distilled) == (None, False)
    # Short side to 256, centre crop 224.
    assert record.preprocessing == Preprocessing(image_size=224, resize="short_side", resize_to=256)

    knn, linear = record.accuracies
    assert (knn.method, knn.measured_by, knn.top1, knn.top5) == ("k-NN", "official", row["knn_top1"], None)
    assert (linear.method, linear.measured_by, linear.top1) == ("linear", "official", row["linear_top1"])

    urls = [row["dino_repo_backbone_url"], row["xcit_repo_backbone_url"]]
    assert [(source.kind, source.location, source.sha256) for source in record.sources] == [
        ("url", url, None) for url in urls
    ]
    assert [source.filename for source in record.sources] == [str(url).rsplit("/", 1)[1] for url in urls]
    # Aliases: the name in DINO's torch.hub, and the names of the published files.
    assert {f"dino_{row['arch']}", *(Path(source.filename).stem for source in record.sources)} < set(record.aliases)


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
