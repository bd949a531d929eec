"""Tests the records of segmenters against the published table, and their files in the official format and in ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import xcit
from xcit.errors import XCiTError
from xcit.models import Segmenter, SegmenterConfig, SegmenterInfo, XCiT, XCiTConfig, build_segmenter
from xcit.models.segmentation import SegmenterKind
from xcit.weights.dense import dense_to_native
from xcit.zoo import (
    ARCHITECTURES,
    RECORDS,
    SEGMENTERS,
    find_checkpoint,
    find_record,
    get_backbone,
    get_model,
    save_model,
    verify,
)
from xcit.zoo.classes import ade20k_class_names
from xcit.zoo.conversion import convert
from xcit.zoo.kinds import SEGMENTER
from xcit.zoo.segmenters import segmenter_name
from xcit.zoo.stored import num_parameters, outline, read_weights

DenseKeys = Callable[[str, str, int], dict[str, list[int]]]
ROWS = json.loads((Path(__file__).parents[2] / "data" / "segmentation.json").read_text())


def kind_of(row: dict[str, object]) -> SegmenterKind:
    return "upernet" if row["head"] == "UperNet" else "sem-fpn"


def architecture_of(row: dict[str, object]) -> str:
    return str(row["arch"]).removeprefix("xcit_").replace("_", "-")


def name_of(row: dict[str, object]) -> str:
    return segmenter_name(kind_of(row), architecture_of(row))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_record_is_its_published_row(row: dict[str, object], dense_keys: DenseKeys) -> None:
    record = SEGMENTERS[name_of(row)]
    kind, architecture = kind_of(row), architecture_of(row)
    steps = "160k" if kind == "upernet" else "80k"
    assert record.name == record.recipe == f"{kind}_xcit-{architecture}_{steps}_ade20k"
    assert Path(str(row["config"])).stem in record.aliases
    assert [(figure.measured_by, figure.metric, figure.value) for figure in record.figures] == [
        ("official", "mIoU", row["miou"])
    ]
    assert [source.location for source in record.sources] == [row["url"]]
    assert find_record(Path(str(row["url"])).stem) is record
    assert num_parameters(record.model) == row["params"]
    shape = row["config_backbone"]
    assert isinstance(shape, dict)
    backbone = record.model.backbone
    for name in ("patch_size", "embed_dim", "depth", "num_heads"):
        assert getattr(backbone, name) == shape[name]
    assert backbone.layer_scale == shape["eta"]
    with torch.device("meta"):
        assert list(build_segmenter(record.model).backbone.out_indices) == shape["out_indices"]
    assert record.preprocessing.long_side == 2048
    assert record.preprocessing.short_side == 512

    # Published tensors and tensors of the model correspond one to one.
    size, _, patch = architecture.rpartition("-p")
    published = {name: torch.zeros(()).expand(shape) for name, shape in dense_keys(kind, size, int(patch)).items()}
    assert len(published) == row["state_dict_entries"]
    native = dense_to_native(published, SEGMENTER.heads[kind])
    assert {name: tensor.shape for name, tensor in native.items()} == outline(record.model)


def test_16_records_with_names_of_their_own() -> None:
    assert len(SEGMENTERS) == len(ROWS) == 16
    names = [name.lower() for record in RECORDS.values() for name in (record.name, *record.aliases)]
    assert len(names) == len(set(names))


def test_classes() -> None:
    names = ade20k_class_names()
    assert len(set(names)) == 150
    assert (names[0], names[7], names[12], names[149]) == ("wall", "bed", "person", "flag")


def test_a_segmenter_is_no_classifier() -> None:
    with pytest.raises(XCiTError, match="is a model for semantic-segmentation") as error:
        find_checkpoint("upernet_xcit-small-12-p8_160k_ade20k")
    assert "\n" not in str(error.value)


# Files of the smallest segmenter of each kind, with random numbers


@pytest.fixture(scope="module", params=["upernet", "sem-fpn"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, dense_keys: DenseKeys) -> Path:
    """Writes a file as the authors' tools do."""
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randint(1, 9, shape, generator=draw)
        if name.endswith("num_batches_tracked")
        else torch.rand(shape, generator=draw)
        for name, shape in dense_keys(request.param, "tiny-12", 8).items()
    }
    path = tmp_path_factory.mktemp(request.param) / f"{request.param}.pth"
    torch.save({"state_dict": state, "meta": {"CLASSES": ("wall", "sky"), "PALETTE": [[1, 2, 3]]}}, path)
    return path


def test_a_published_file_loads_strictly_and_comes_back_bit_for_bit(published: Path, tmp_path: Path) -> None:
    kind: SegmenterKind = "upernet" if published.stem == "upernet" else "sem-fpn"
    name = segmenter_name(kind, "tiny-12-p8")
    by_file, by_name = get_model(published), get_model(name, pretrained=published)
    assert isinstance(by_file, Segmenter)
    assert isinstance(by_name, Segmenter)
    # The loader recognises architecture and patch size by the parameter names.
    assert by_file.config == by_name.config == SEGMENTERS[name].model
    assert not by_file.training
    assert by_file.info is None
    assert by_name.info is not None
    assert by_name.info.class_names == ade20k_class_names()
    state = by_file.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in by_name.state_dict().items())

    original: dict[str, Tensor] = torch.load(published, weights_only=True)["state_dict"]
    convert(published, tmp_path / "ours.safetensors", "xcit")
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pth", "mmseg")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == {"state_dict", "meta"}
    assert back["state_dict"].keys() == original.keys()
    for key, tensor in original.items():
        assert tensor.dtype == back["state_dict"][key].dtype
        assert torch.equal(tensor, back["state_dict"][key]), key
    verified = verify(tmp_path / "ours.safetensors")
    assert (verified.architecture, verified.num_tensors) == (f"{kind} on tiny-12-p8", len(original))

    pyramid = get_backbone(published, pyramid=True)
    assert all(torch.equal(tensor, state[f"backbone.{key}"]) for key, tensor in pyramid.state_dict().items())
    xcit_alone = get_backbone(tmp_path / "ours.safetensors")
    assert isinstance(xcit_alone, XCiT)
    assert all(torch.equal(tensor, state[f"backbone.xcit.{key}"]) for key, tensor in xcit_alone.state_dict().items())


def test_what_does_not_fit_is_named(published: Path, tmp_path: Path) -> None:
    other: SegmenterKind = "sem-fpn" if published.stem == "upernet" else "upernet"
    with pytest.raises(XCiTError, match="the weights of another head"):
        get_model(segmenter_name(other, "tiny-12-p8"), pretrained=published)
    for architecture, field in (("tiny-12-p16", "patch_size is 8"), ("small-12-p8", "embed_dim is 192")):
        kind: SegmenterKind = "upernet" if published.stem == "upernet" else "sem-fpn"
        with pytest.raises(XCiTError, match=field):
            get_model(segmenter_name(kind, architecture), pretrained=published)
    content = torch.load(published, weights_only=True)
    content["state_dict"].pop("backbone.fpn1.0.bias")
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(XCiTError, match="1 missing"):
        get_model(tmp_path / "short.pth")
    for call in (lambda: xcit.load_weights(XCiT(ARCHITECTURES["tiny-12-p8"]), published),):
        with pytest.raises(XCiTError, match="does not fit"):
            call()


def test_a_classifiers_weights_are_no_segmenters(tmp_path: Path) -> None:
    save_model(XCiT(ARCHITECTURES["tiny-12-p16"]), tmp_path / "classifier.safetensors")
    with pytest.raises(XCiTError, match="these are the weights of a classifier or backbone, not of a segmenter"):
        get_model("upernet_xcit-tiny-12-p16_160k_ade20k", pretrained=tmp_path / "classifier.safetensors")
    with pytest.raises(XCiTError, match=r"is no segmenter, but mmseg is a format for segmenters"):
        convert(tmp_path / "classifier.safetensors", tmp_path / "out.pth", "mmseg")


# Our own format


def small(kind: SegmenterKind) -> Segmenter:
    backbone = XCiTConfig(
        patch_size=4, embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none", in_channels=1
    )
    torch.manual_seed(0)
    config = SegmenterConfig(
        kind=kind, backbone=backbone, num_classes=4, channels=8, auxiliary_channels=6, out_indices=(0, 0, 1, 1)
    )
    model = build_segmenter(config).eval()
    spec = xcit.models.SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.5,), std=(0.2,))
    model.info = SegmenterInfo(name="small", preprocessing=spec, class_names=("ground", "bag", "coat", "shirt"))
    return model


@pytest.mark.parametrize("kind", ["upernet", "sem-fpn"])
@torch.no_grad()
def test_saved_and_loaded(kind: SegmenterKind, tmp_path: Path) -> None:
    model, images = small(kind), torch.randn(1, 1, 21, 30)
    save_model(model, tmp_path / "own.safetensors")
    loaded = get_model(tmp_path / "own.safetensors")
    assert isinstance(loaded, Segmenter)
    assert (loaded.config, loaded.info) == (model.config, model.info)
    assert torch.equal(loaded(images), model(images))
    assert verify(tmp_path / "own.safetensors").recorded
    again = get_model(tmp_path / "own.safetensors", num_classes=7)
    assert again(images).shape == (1, 7, 21, 30)
    assert isinstance(again, Segmenter)
    assert again.info is not None
    assert again.info.class_names == ()
    with pytest.raises(XCiTError, match="the weights of a detector or segmenter"):
        xcit.predict("x.png", tmp_path / "own.safetensors")


def test_damaged_metadata_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(small("upernet"), tmp_path / "own.safetensors")
    stored = read_weights(tmp_path / "own.safetensors")
    metadata = stored.metadata | {"xcit": stored.metadata["xcit"].replace("channels", "chanels")}
    save_file(stored.dense, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(XCiTError, match=r"bad\.safetensors: its metadata can't be read"):
        get_model(tmp_path / "bad.safetensors")


def test_a_random_segmenter_of_other_classes() -> None:
    model = get_model("sem-fpn_xcit-tiny-12-p8_80k_ade20k", num_classes=3, device="meta")
    assert isinstance(model, Segmenter)
    assert model.config == replace(SEGMENTERS["sem-fpn_xcit-tiny-12-p8_80k_ade20k"].model, num_classes=3)
    assert next(model.parameters()).device.type == "meta"
    with pytest.raises(XCiTError, match="set num_classes above 0"):
        get_model("sem-fpn_xcit-tiny-12-p8_80k_ade20k", num_classes=0)


def test_the_cache_keeps_a_whole_segmenter(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: SegmenterKind = "upernet" if published.stem == "upernet" else "sem-fpn"
    name, mirror = segmenter_name(kind, "tiny-12-p8"), tmp_path / "mirror"
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_MIRROR", str(mirror))
    mirror.mkdir()
    (mirror / SEGMENTERS[name].sources[0].filename).write_bytes(published.read_bytes())
    model = get_model(name, pretrained=True)
    assert isinstance(model, Segmenter)
    assert model.info is not None
    assert model.info.class_names[0] == "wall"
    state = get_model(published).state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    cached = get_model(next((tmp_path / "cache" / "checkpoints").glob("*.safetensors")))
    assert isinstance(cached, Segmenter)
    assert cached.info == model.info
