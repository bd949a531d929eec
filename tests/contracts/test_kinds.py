"""Tests the table of model kinds: properties of every kind and record, and a fourth kind that this file defines."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xcit
from xcit.cli.models import TASKS
from xcit.cli.weights import FORMATS
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.models import SegmenterInfo, XCiT, XCiTConfig, XCiTPyramid
from xcit.models.detection.config import MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.pyramid import OnPyramid
from xcit.models.segmentation import SegmenterConfig, build_segmenter
from xcit.weights.dense import PYRAMID
from xcit.weights.fetch import Source
from xcit.weights.files import StoredWeights
from xcit.zoo import RECORDS, get_model, list_models, save_model, verify
from xcit.zoo import names as zoo_names
from xcit.zoo.architectures import ARCHITECTURES, backbone_of
from xcit.zoo.conversion import targets
from xcit.zoo.kinds import KINDS, Kind
from xcit.zoo.records import Record
from xcit.zoo.shapes import config_from_state

BACKBONE = replace(backbone_of(ARCHITECTURES["pico-6-p4"]), in_channels=3)


# A fourth kind of model, which predicts the depth of each pixel


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    backbone: XCiTConfig
    num_classes: int = 1  # numbers per pixel


@dataclass(frozen=True, kw_only=True)
class DepthInfo:
    name: str
    unit: str = "m"


class Depth(OnPyramid):
    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.config, self.info = config, None
        self.backbone = XCiTPyramid(config.backbone)
        self.far = nn.Conv2d(config.backbone.embed_dim, config.num_classes, 1)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.far(self.backbone(images)[0])

    def reset_classifier(self, num_classes: int) -> None:
        self.config = replace(self.config, num_classes=num_classes)
        self.far = nn.Conv2d(self.config.backbone.embed_dim, num_classes, 1)


def _config(stored: StoredWeights) -> DepthConfig:
    channels = stored.dense["far.weight"].shape[0]
    return DepthConfig(backbone=config_from_state(stored.state, str(stored.path)), num_classes=channels)


DEPTH = Kind(
    name="depth estimator",
    task="depth-estimation",
    config=DepthConfig,
    info=DepthInfo,
    model=lambda: Depth,
    build=Depth,
    backbone=lambda config: config.backbone,
    config_from_weights=_config,
    fit=lambda config, stored, stated, num_classes: _config(stored) if stated is None else stated,
    heads={"depth": {**PYRAMID, "far": "decode_head.conv_depth"}},
    published_format="mmdepth",
)


@dataclass(frozen=True, kw_only=True)
class DepthRecord(Record):
    kind = DEPTH
    task: str = DEPTH.task
    model: DepthConfig

    def info(self) -> DepthInfo:
        return DepthInfo(name=self.name)

    def row(self) -> dict[str, str]:
        return {" px": "28", "error": "0.1"}

    def details(self, counts: Any) -> list[tuple[str, str]]:
        return [("parameters", f"{counts['params']:,}")]


RECORD = DepthRecord(
    name="depth_xcit-pico",
    aliases=("depth_pico",),
    architecture="pico-6-p4",
    recipe="none",
    dataset="rooms",
    model=DepthConfig(backbone=BACKBONE),
    sources=(Source(kind="url", location="http://127.0.0.1:9/depth.pth", filename="depth.pth"),),
)


@pytest.fixture
def fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, DEPTH.name, DEPTH)
    monkeypatch.setitem(RECORDS, RECORD.name, RECORD)
    for name in (RECORD.name, *RECORD.aliases):
        monkeypatch.setitem(zoo_names._BY_LOWER_NAME, name, RECORD)


@pytest.mark.usefixtures("fourth")
@torch.no_grad()
def test_a_new_kind_is_stored_loaded_converted_verified_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model: Any = Depth(DepthConfig(backbone=BACKBONE)).eval()
    images = torch.rand(1, 3, 20, 24)
    model.info = DepthInfo(name="mine", unit="ft")
    ours, published = tmp_path / "own.safetensors", tmp_path / "depth.pth"
    save_model(model, ours)
    loaded = get_model(ours)
    assert isinstance(loaded, Depth)
    assert (loaded.config, loaded.info, loaded.training) == (model.config, model.info, False)
    assert torch.equal(loaded(images), model(images))

    assert xcit.convert(ours, published, "mmdepth").head == "depth"
    names = torch.load(published, weights_only=True)["state_dict"]
    assert {"decode_head.conv_depth.weight", "backbone.blocks.0.gamma1"} <= names.keys()
    assert torch.equal(get_model(published)(images), model(images))
    with pytest.raises(XCiTError, match="is no segmenter, but mmseg is a format for segmenters"):
        xcit.convert(ours, tmp_path / "no.pth", "mmseg")
    with pytest.raises(XCiTError, match="not the weights of a segmenter: their head is depth"):
        get_model("sem-fpn_xcit-tiny-12-p16_80k_ade20k", pretrained=ours)
    verified = verify(published)
    assert (verified.architecture, verified.num_tensors) == ("depth on pico-6-p4", len(names))

    assert list_models(task="depth-estimation") == [RECORD.name]
    assert get_model("depth_pico").config == RECORD.model
    assert get_model("depth_pico", pretrained=published).info == DepthInfo(name=RECORD.name)
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path))
    fetched = get_model("depth_pico", pretrained=True)
    assert fetched.info == DepthInfo(name=RECORD.name)
    assert torch.equal(fetched(images), model(images))
    assert torch.equal(xcit.get_backbone("depth_pico", pretrained=True)(images), xcit.get_backbone(ours)(images))


@pytest.mark.usefixtures("fourth")
def test_a_new_kind_in_the_verbs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from xcit.cli import main

    for arguments in (["list", "depth*"], ["info", "depth_pico"], ["bench", "depth_pico", "--sizes", "32"]):
        monkeypatch.setattr("sys.argv", ["xcit", *arguments, *(["--no-memory"] if arguments[0] == "bench" else [])])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "name              px  error  data" in " ".join(printed.split("\n")[0].split("  ")) or "error" in printed
    assert "depth_xcit-pico" in printed
    assert "images/s" in printed


# Every kind


def _models() -> dict[str, Any]:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"backbone": BACKBONE, "num_classes": 5, "channels": 16}
    models: dict[str, Any] = {"classifier": XCiT(replace(ARCHITECTURES["pico-6-p4"], in_channels=3))}
    kinds: Any = ("upernet", "sem-fpn")
    for kind in kinds:
        models[kind] = build_segmenter(SegmenterConfig(kind=kind, auxiliary_channels=8, **shape))
        spec = SegmentationPreprocessing(long_side=0, short_side=0)
        models[kind].info = SegmenterInfo(name=kind, preprocessing=spec)
    models["detector"] = MaskRCNN(MaskRCNNConfig(box_features=32, short_side=64, long_side=96, **shape))
    draw = torch.Generator().manual_seed(1)
    for model in models.values():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.rand(buffer.shape, generator=draw))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw))
    return models


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return _models()


NAMES = ("classifier", "upernet", "sem-fpn", "detector")


def _answer(model: Any, image: Tensor) -> tuple[Tensor, ...]:
    return tuple(model.detect(image[0])) if hasattr(model, "detect") else (model(image),)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_fused_is_as_in_evaluation_mode_whatever_the_mode(models: dict[str, Any], name: str) -> None:
    model, image = models[name], torch.rand(1, 3, 52, 70, generator=torch.Generator().manual_seed(0))
    expected = _answer(model.eval(), image)
    model.train()
    fused = model.fuse()
    assert not any(module.training for module in fused.modules())
    assert model.training
    for ours, theirs in zip(_answer(fused, image), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for part in (fused, getattr(fused, "backbone", fused)):
        with pytest.raises(XCiTError, match="a fused model can't be trained"):
            part.train()
    assert not any(module.training for module in fused.modules())
    with pytest.raises(XCiTError, match="a fused model can't be saved"):
        save_model(fused, Path("nowhere.safetensors"))


@pytest.mark.parametrize("name", ["upernet", "sem-fpn"])
def test_segment_of_a_model_in_training_mode(models: dict[str, Any], name: str) -> None:
    image = (255 * torch.rand(45, 60, 3, generator=torch.Generator().manual_seed(2))).byte().numpy()
    model: Any = models[name]
    found = [xcit.segment(image, model.train(mode))[0].labels for mode in (True, False)]
    assert (found[0] == found[1]).all()
    assert len(set(found[0].ravel().tolist())) > 1


def test_detect_of_a_model_in_training_mode(models: dict[str, nn.Module]) -> None:
    image = torch.rand(3, 45, 60, generator=torch.Generator().manual_seed(2))
    model: Any = models["detector"]
    found = [xcit.detect(image, model.train(mode), min_score=0.0)[0].objects for mode in (True, False)]
    assert found[0] == found[1] and found[0]
    model.train()
    model.backbone.eval()  # as with a frozen backbone: modules may differ in their mode
    one, other = model.detect(image), model.eval().detect(image)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_detect_leaves_each_module_in_its_mode(models: dict[str, nn.Module]) -> None:
    model: Any = models["detector"].train()
    model.backbone.eval()
    model.detect(torch.rand(3, 45, 60))
    assert model.training and model.rpn.training and not model.backbone.training


# Every record


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_has_the_names_of_its_own_classes(name: str) -> None:
    record = RECORDS[name]
    info = xcit.zoo.load.record_info(record)
    assert len(info.class_names) == record.model.num_classes
    assert info.name == record.name
    first = {"ImageNet-1k": "tench", "ADE20K": "wall", "COCO": "person", "Fashion-MNIST": "T-shirt/top"}
    first |= {"CIFAR-10": "airplane", "CIFAR-100": "apple"}
    if info.class_names:
        assert info.class_names[0].startswith(first[record.dataset])


def test_records_of_classes_that_nobody_knows_have_no_names() -> None:
    record = replace(RECORDS["xcit-nano-12-p16_3rdparty_in1k"], dataset="Caltech-101")
    assert record.info().class_names == ()


@pytest.mark.parametrize("name", RECORDS)
def test_fetch_takes_every_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from xcit.cli import main

    monkeypatch.setenv("XCIT_CACHE", str(tmp_path))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    monkeypatch.setattr("sys.argv", ["xcit", "fetch", name])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    if RECORDS[name].packaged:
        assert (ended.value.code, printed.err) == (0, "")
        return
    assert ended.value.code == 1
    if RECORDS[name].sources:
        assert printed.err.startswith(f"xcit: cannot get the weights of {name}:\n")
    else:
        assert printed.err.startswith(f"xcit: {name}: a program can't download its file: ")


def test_the_command_line_offers_what_the_table_has() -> None:
    assert targets() == FORMATS
    assert {record.task for record in RECORDS.values()} == {*TASKS}
    assert {kind.task for kind in KINDS.values()} <= {*TASKS}
