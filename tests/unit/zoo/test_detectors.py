"""Tests the records of detectors against the published table, and their files in the official format and in ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig, XCiTPyramid
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.weights.dense import MASK_RCNN, dense_from_native, dense_to_native
from xcit.zoo import ARCHITECTURES, DETECTORS, RECORDS, find_record, get_backbone, get_model, save_model, verify
from xcit.zoo.classes import coco_category_ids, coco_class_names
from xcit.zoo.conversion import convert
from xcit.zoo.detectors import EITHER_PATCH, detector_name
from xcit.zoo.stored import num_parameters, outline

DenseKeys = Callable[[str, str, int], dict[str, list[int]]]
ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "data" / "detection.json").read_text())


def architecture_of(row: dict[str, Any]) -> str:
    return str(row["arch"]).removeprefix("xcit_").replace("_", "-")


@pytest.mark.parametrize("row", ROWS, ids=architecture_of)
def test_a_record_is_its_published_row(row: dict[str, Any], dense_keys: DenseKeys) -> None:
    architecture = architecture_of(row)
    record = DETECTORS[detector_name(architecture)]
    assert record.name == record.recipe == f"mask-rcnn_xcit-{architecture}_3x_coco"
    assert Path(row["config"]).stem in record.aliases
    assert [(figure.measured_by, figure.metric, figure.value) for figure in record.figures] == [
        ("official", "box AP", row["box_ap"]),
        ("official", "mask AP", row["mask_ap"]),
    ]
    assert [source.location for source in record.sources] == [row["url"]]
    assert find_record(Path(row["url"]).stem) is record
    assert num_parameters(record.model) == row["params"]
    shape, backbone = row["config_backbone"], record.model.backbone
    for name in ("embed_dim", "depth", "num_heads"):
        assert getattr(backbone, name) == shape[name]
    # The published config of EITHER_PATCH has the wrong patch size; all others are right.
    assert backbone.patch_size == (16 if record.name == EITHER_PATCH else shape["patch_size"])
    assert backbone.layer_scale == shape["eta"]
    with torch.device("meta"):
        assert list(XCiTPyramid(backbone).out_indices) == shape["out_indices"]
    assert (record.model.short_side, record.model.long_side, record.model.num_classes) == (800, 1333, 80)

    # Published tensors and tensors of the model correspond one to one.
    size, _, patch = architecture.rpartition("-p")
    published = {name: torch.zeros(()).expand(s) for name, s in dense_keys("mask-rcnn", size, int(patch)).items()}
    assert len(published) == row["state_dict_entries"]
    native = dense_to_native(published, MASK_RCNN)
    assert {name: tensor.shape for name, tensor in native.items()} == outline(record.model)
    back = dense_from_native(native, MASK_RCNN)
    assert back.keys() == published.keys() and all(back[name] is published[name] for name in published)


def test_8_records_with_names_of_their_own() -> None:
    assert len(DETECTORS) == len(ROWS) == 8
    names = [name.lower() for record in RECORDS.values() for name in (record.name, *record.aliases)]
    assert len(names) == len(set(names))


def test_classes() -> None:
    names, numbers = coco_class_names(), coco_category_ids()
    assert len(set(names)) == len(set(numbers)) == 80
    assert set(range(1, 91)) - set(numbers) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert dict(zip(numbers, names, strict=True))[90] == "toothbrush"
    assert (names[0], names[79]) == ("person", "toothbrush")


# As files


def write_published(path: Path, keys: dict[str, list[int]]) -> Path:
    """Writes a file of random numbers in the format of the authors' tools."""
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randint(1, 9, shape, generator=draw)
        if name.endswith("num_batches_tracked")
        else 0.1 * torch.rand(shape, generator=draw)
        for name, shape in keys.items()
    }
    torch.save({"state_dict": state, "meta": {"CLASSES": coco_class_names(), "epoch": 36}}, path)
    return path


@pytest.fixture(scope="module", params=[16, 8])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dense_keys: DenseKeys) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return write_published(folder / f"p{request.param}.pth", dense_keys("mask-rcnn", "tiny-12", request.param))


def test_a_published_file_loads_strictly_and_comes_back_bit_for_bit(published: Path, tmp_path: Path) -> None:
    architecture = f"tiny-12-{published.stem}"
    name = detector_name(architecture)
    by_file, by_name = get_model(published), get_model(name, pretrained=published)
    assert isinstance(by_file, MaskRCNN) and isinstance(by_name, MaskRCNN)
    # The loader recognises architecture and patch size by the parameter names.
    assert by_file.config == by_name.config == DETECTORS[name].model
    assert not by_file.training and by_file.info is None
    assert by_name.info is not None and by_name.info.class_names[0] == "person"
    state = by_file.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in by_name.state_dict().items())

    original: dict[str, Tensor] = torch.load(published, weights_only=True)["state_dict"]
    # The classifier's rows have the same order in both formats; the background is last.
    assert torch.equal(by_file.roi_heads.box_predictor.cls_score.weight, original["roi_head.bbox_head.fc_cls.weight"])
    convert(published, tmp_path / "ours.safetensors", "xcit")
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", "mmdet")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == {"state_dict", "meta"}
    assert back["state_dict"].keys() == original.keys()
    for key, tensor in original.items():
        assert tensor.dtype == back["state_dict"][key].dtype
        assert torch.equal(tensor, back["state_dict"][key]), key
    verified = verify(tmp_path / "ours.safetensors")
    assert (verified.architecture, verified.num_tensors) == (f"mask-rcnn on {architecture}", len(original))
    pyramid = get_backbone(published, pyramid=True)
    assert all(torch.equal(tensor, state[f"backbone.{key}"]) for key, tensor in pyramid.state_dict().items())
    with pytest.raises(XCiTError, match="is no segmenter, but mmseg is a format for segmenters"):
        convert(published, tmp_path / "no.pth", "mmseg")


def test_what_does_not_fit_is_named(published: Path, tmp_path: Path) -> None:
    patch = int(published.stem[1:])
    with pytest.raises(XCiTError, match=f"patch_size is {patch}, the model's is {24 - patch}"):
        get_model(detector_name(f"tiny-12-p{24 - patch}"), pretrained=published)
    with pytest.raises(XCiTError, match="embed_dim is 192"):
        get_model(detector_name(f"small-12-p{patch}"), pretrained=published)
    with pytest.raises(XCiTError, match="not the weights of a segmenter"):
        get_model("sem-fpn_xcit-tiny-12-p16_80k_ade20k", pretrained=published)
    content = torch.load(published, weights_only=True)
    content["state_dict"].pop("rpn_head.rpn_cls.bias")
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(XCiTError, match="1 missing"):
        get_model(tmp_path / "short.pth")
    logits = "roi_head.mask_head.conv_logits.weight"
    content["state_dict"][logits] = content["state_dict"][logits].flatten()
    torch.save(content, tmp_path / "flat.pth")
    with pytest.raises(XCiTError, match=r"not the weights of a detector: .*mask_fcn_logits.weight has 1 dimensions"):
        get_model(tmp_path / "flat.pth")
    save_model(XCiT(ARCHITECTURES["tiny-12-p16"]), tmp_path / "classifier.safetensors")
    with pytest.raises(XCiTError, match="a classifier or backbone, not of a detector"):
        get_model(detector_name("tiny-12-p16"), pretrained=tmp_path / "classifier.safetensors")


@pytest.mark.parametrize("patch_size", [8, 16])
def test_the_model_whose_config_is_wrong_is_what_its_file_is(
    patch_size: int, tmp_path: Path, dense_keys: DenseKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_published(tmp_path / "file.pth", dense_keys("mask-rcnn", "medium-24", patch_size))
    built = get_model(EITHER_PATCH, pretrained=path)
    assert isinstance(built, MaskRCNN) and built.config.backbone.patch_size == patch_size
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    path.rename(tmp_path / "mirror" / DETECTORS[EITHER_PATCH].sources[0].filename)
    built = get_model(EITHER_PATCH, pretrained=True)
    assert isinstance(built, MaskRCNN) and built.config.backbone.patch_size == patch_size
    assert built.info is not None and built.info.category_ids[-1] == 90
    assert verify(EITHER_PATCH).architecture == f"mask-rcnn on medium-24-p{patch_size}"


# Our own format


def small() -> MaskRCNN:
    backbone = XCiTConfig(
        patch_size=4, embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none", in_channels=1
    )
    torch.manual_seed(0)
    config = MaskRCNNConfig(
        backbone=backbone,
        num_classes=4,
        channels=8,
        box_features=12,
        out_indices=(0, 0, 1, 1),
        anchor_scale=4.0,
        short_side=64,
        long_side=96,
        mean=(0.5,),
        std=(0.2,),
    )
    model = MaskRCNN(config).eval()
    model.info = DetectorInfo(name="small", class_names=("bag", "coat", "shirt", "shoe"), category_ids=(2, 3, 5, 9))
    return model


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, image = small(), torch.rand(1, 21, 30)
    save_model(model, tmp_path / "own.safetensors")
    loaded = get_model(tmp_path / "own.safetensors")
    assert isinstance(loaded, MaskRCNN)
    assert (loaded.config, loaded.info) == (model.config, model.info)
    assert all(torch.equal(one, other) for one, other in zip(loaded.detect(image), model.detect(image), strict=True))
    assert verify(tmp_path / "own.safetensors").recorded
    again = get_model(tmp_path / "own.safetensors", num_classes=7)
    assert isinstance(again, MaskRCNN) and again.num_classes == 7
    assert again.info == DetectorInfo(name="small")


def test_a_random_detector_of_other_classes() -> None:
    name = detector_name("tiny-12-p8")
    model = get_model(name, num_classes=3, device="meta")
    assert isinstance(model, MaskRCNN)
    assert model.config == replace(DETECTORS[name].model, num_classes=3)
    assert next(model.parameters()).device.type == "meta"
