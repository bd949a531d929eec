"""Tests models as folders and on the Hub: this package, timm and transformers read what the others write."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_stand_in import Hub, hub_stand_in
from PIL import Image
from small_models import KINDS, build
from torch import Tensor, nn

import xcit
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing, preprocess
from xcit.models import ModelInfo, Segmenter, SegmenterInfo, XCiT, XCiTConfig
from xcit.models.detection.config import DetectorInfo
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.zoo import find_checkpoint, find_record
from xcit.zoo.conversion import convert
from xcit.zoo.folders import CARD, CONFIG, MANIFEST, WEIGHTS, Shared
from xcit.zoo.model_card import model_card, published_figures
from xcit.zoo.timm_hub import read_timm_config, timm_config

SHAPE = XCiTConfig(patch_size=16, embed_dim=32, depth=2, num_heads=2, cls_depth=1, num_classes=3)
INFO = ModelInfo(
    name="birds",
    preprocessing=Preprocessing(image_size=48, resize_to=55, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
    class_names=("owl", "crow", "wren"),
)


def with_info(config: XCiTConfig, info: ModelInfo | None) -> XCiT:
    torch.manual_seed(0)
    model = XCiT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.info = info
    return model


@pytest.fixture
def model() -> XCiT:
    return with_info(SHAPE, INFO)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_stand_in(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


@torch.no_grad()
def close(one: nn.Module, other: nn.Module, channels: int = 3) -> None:
    images = torch.rand(2, channels, 48, 48, generator=torch.Generator().manual_seed(1))
    found = other(images)
    torch.testing.assert_close(getattr(found, "logits", found), one(images), rtol=1e-4, atol=1e-5)


def timms(folder: Path) -> Any:
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


# Folders


@pytest.mark.parametrize("name", ["xcit-nano-12-p16_3rdparty-dist_in1k", "xcit-nano-12-p8_3rdparty-dist_in1k-384px"])
def test_a_published_model_for_timm_and_transformers(name: str, tmp_path: Path, photo: Path) -> None:
    record = find_checkpoint(name)
    model = with_info(record.model, record.info())
    source = tmp_path / f"{name}.safetensors"
    xcit.save_model(model, source)
    folder = tmp_path / "folder"
    convert(source, folder, "timm-hub")

    from timm.data import create_transform, resolve_model_data_config

    theirs = timms(folder)
    close(model, theirs)
    image = Image.open(photo)
    prepared = create_transform(**resolve_model_data_config(theirs), is_training=False)(image)
    assert torch.equal(prepared, preprocess(image, model.info.preprocessing))

    card = (folder / CARD).read_text()
    figure = record.accuracies[0]
    assert f"| top-1 | ImageNet-1k | {figure.top1:.2f}% | {figure.measured_by} |" in card
    assert "license: apache-2.0" in card and "library_name: timm" in card
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["licence"] == "Apache-2.0" and manifest["versions"]["xcit"] == xcit.__version__
    assert [source["location"] for source in manifest["sources"]] == [source.location for source in record.sources]
    assert xcit.get_model(folder).info == record.info()


def test_transformers_pipeline_gives_our_scores(model: XCiT, tmp_path: Path, photo: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of transformers
        from transformers import AutoModelForImageClassification, pipeline

        folder = model.save_pretrained(tmp_path / "folder")
        theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
        close(model, theirs)
        found = pipeline("image-classification", str(folder))(str(photo))
    ours = xcit.predict(photo, model=folder)[0].classes
    assert [one["label"] for one in found] == [one.name for one in ours]
    assert [one["score"] for one in found] == pytest.approx([one.score for one in ours], abs=1e-5)
    # A folder that transformers saves has none of our metadata, and its config has more fields than timm's.
    theirs.save_pretrained(tmp_path / "theirs")
    back = xcit.get_model(tmp_path / "theirs")
    assert back.config == model.config and replace(back.info, name=INFO.name) == INFO
    close(model, back)


@pytest.mark.parametrize(
    ("config", "info"),
    [
        (SHAPE, replace(INFO, is_multi_label=True)),
        (replace(SHAPE, num_classes=0, patch_size=8, cls_depth=2), replace(INFO, class_names=())),
        (replace(SHAPE, global_pool="avg", qkv_bias=False, mlp_ratio=3.0), INFO),
        (replace(SHAPE, tokens_norm=False), replace(INFO, preprocessing=Preprocessing(image_size=48, resize="exact"))),
        *(
            (
                replace(SHAPE, in_channels=channels),
                replace(
                    INFO,
                    preprocessing=Preprocessing(image_size=48, mean=(0.5,) * channels, std=(0.25,) * channels),
                ),
            )
            for channels in (1, 5)
        ),
    ],
)
def test_other_shapes_go_to_timm_and_come_back(config: XCiTConfig, info: ModelInfo, tmp_path: Path) -> None:
    model = with_info(config, info)
    folder = model.save_pretrained(tmp_path / "folder")
    close(model, timms(folder), config.in_channels)
    back = XCiT.from_pretrained(folder)
    assert back.config == replace(config, layer_scale=back.config.layer_scale)
    spec = info.preprocessing
    resize_to = 48 if spec.resize == "exact" else spec.resize_to
    assert back.info == replace(info, preprocessing=replace(spec, resize_to=resize_to))
    close(model, back, config.in_channels)


def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    theirs = timm.create_model("xcit_nano_12_p16_224", num_classes=4).eval()
    save_for_hf(theirs, str(tmp_path), model_config={"label_names": [*"abcd"]}, safe_serialization="both")
    model = XCiT.from_pretrained(tmp_path)
    close(theirs, model)
    assert model.info.class_names == (*"abcd",) and model.info.preprocessing == Preprocessing()
    (tmp_path / WEIGHTS).unlink()
    close(theirs, xcit.get_model(tmp_path))


def test_timms_own_config_of_a_published_model_is_known_by_its_tag(tmp_path: Path) -> None:
    name = "xcit-nano-12-p16_3rdparty-dist_in1k"
    model = with_info(find_record(name).model, find_record(name).info())
    folder = model.save_pretrained(tmp_path / "folder")
    content = json.loads((folder / CONFIG).read_text())
    del content["label_names"]  # timm's repositories have no class names: classes are ImageNet's
    content["pretrained_cfg"]["tag"] = "fb_dist_in1k"
    (folder / CONFIG).write_text(json.dumps(content))
    (folder / MANIFEST).unlink()
    assert xcit.get_model(folder).info == find_record(name).info()


def info_of(kind: str) -> Any:
    if kind == "detector":
        return DetectorInfo(name="mine", class_names=(*"abcd",))
    return SegmenterInfo(name="mine", preprocessing=SegmentationPreprocessing(), class_names=(*"abcd",))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("classifier", "dino")])
def test_models_that_timm_has_not(kind: str, tmp_path: Path) -> None:
    model: Any = build(kind)
    model.info = info_of(kind)
    folder = model.save_pretrained(tmp_path / "folder", licence="cc-by-nc-4.0")
    assert "Only the package `xcit` can load this folder" in (folder / CARD).read_text()
    back = type(model).from_pretrained(folder)
    assert (back.config, back.info) == (model.config, model.info)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    other: Any = Segmenter if kind == "detector" else MaskRCNN
    with pytest.raises(XCiTError, match=rf"is a {type(model).__name__}, not a {other.__name__}"):
        other.from_pretrained(folder)
    assert xcit.verify(folder).num_tensors == len(model.state_dict())


def test_the_command_line_says_who_loads_a_folder(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from xcit.cli.weights import convert as command

    packaged = str(xcit.fetch("packaged"))
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"data": "/data/garments", "num_images": 10_000, "top1": 92.33, "top5": 99.9}))
    given = [packaged, str(tmp_path / "new"), "--to", "timm-hub"]
    done = CliRunner().invoke(command, [*given, "--report", str(report), "--licence", "mit"])
    assert done.exit_code == 0 and "only xcit can load this folder" in done.output
    card = (tmp_path / "new" / CARD).read_text()
    assert "| top-1 | garments | 92.33% | xcit test, 10,000 images |" in card and "license: mit" in card
    again = CliRunner().invoke(command, given)
    assert isinstance(again.exception, XCiTError) and "already exists" in str(again.exception)
    assert CliRunner().invoke(command, [*given, "--overwrite"]).exit_code == 0
    images = Path(packaged).parent / "images"
    assert len(xcit.predict(images, model=tmp_path / "new")) == 10


def test_every_format_reads_a_folder(model: XCiT, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "folder")
    convert(folder, tmp_path / "official.safetensors", "official")
    back = xcit.get_model(tmp_path / "official.safetensors")
    close(model, back)
    backbone = xcit.get_backbone(folder)
    assert backbone.config.embed_dim == SHAPE.embed_dim


@pytest.mark.parametrize(
    ("name", "metric", "value"),
    [
        ("xcit-nano-12-p16_3rdparty_in1k", "top-5", 89.98),
        ("dino_xcit-small-12-p16_in1k", "top-1 by k-NN", 76.0),
        ("debenedetti2022light_xcit_s12_cifar10_linf", "top-1 under AutoAttack, Linf 8/255", 56.14),
        ("sem-fpn_xcit-tiny-12-p16_80k_ade20k", "mIoU", 38.1),
        ("mask-rcnn_xcit-tiny-12-p16_3x_coco", "mask AP", 38.5),
    ],
)
def test_the_hub_reads_a_cards_figures(name: str, metric: str, value: float, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    record = find_record(name)
    shared = Shared(config=record.model, info=record.info(), licence=record.licence)
    card: Any = ModelCard(model_card(shared, published_figures(record)))
    found = {(one.metric_name.partition(", measured")[0], one.metric_value) for one in card.data.eval_results}
    assert (metric, value) in found and card.data.license == record.licence.lower()
    assert card.data.library_name == ("timm" if shared.timm_config else "xcit")
    assert f"| {metric} | {record.dataset} | {value:.2f}% |" in card.text


# Bad input


def bad_folders(folder: Path) -> dict[str, Any]:
    def edit(**changes: Any) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**content, **changes}))
        (folder / MANIFEST).unlink()

    return {
        r"model\.safetensors: damaged or changed: its SHA-256 differs from the SHA-256 in manifest\.json": lambda: (
            folder / WEIGHTS
        ).write_bytes(b"x" * 99),
        r"config\.json: damaged or changed: its SHA-256 differs from the SHA-256 in manifest\.json": lambda: (
            folder / CONFIG
        ).write_text("{}"),
        r"has a config\.json but no weights": lambda: (folder / WEIGHTS).unlink(),
        r"its architecture is 'resnet50', which is not an XCiT": lambda: edit(architecture="resnet50"),
        r"there are 1 label_names for 3 classes": lambda: edit(label_names=["a"]),
        r"model_args has 'use_pos_embed'": lambda: edit(model_args={"use_pos_embed": False}),
        r"config\.json: can't be read as the config of a model": lambda: edit(pretrained_cfg=[3]),
        r"is not the config of an XCiT": lambda: edit(architecture=None),
        r"manifest\.json: contains no list of files": lambda: (folder / MANIFEST).write_text('{"files": 3}'),
        r"manifest\.json: not valid JSON": lambda: (folder / MANIFEST).write_text("{"),
        r"does not fit the model": lambda: edit(model_args={"patch_size": 16, "depth": 5, "embed_dim": 32}),
    }


@pytest.mark.parametrize("message", bad_folders(Path()))
def test_a_bad_folder_is_told_in_one_line(message: str, model: XCiT, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "folder")
    bad_folders(folder)[message]()
    with pytest.raises(XCiTError, match=message) as caught:
        xcit.get_model(folder)
    assert "\n" not in str(caught.value) or "does not fit" in message


ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    "",
    -1,
    0,
    2.5,
    1e400,
    float("nan"),
    True,
    [[]],
    ["x"] * 3,
    10**400,
    {"a": {}},
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("channels", [3, 5])
def test_any_value_anywhere_loads_or_is_told(model: XCiT, tmp_path: Path, channels: int) -> None:
    """Anybody can write a config on the Hub. For any content, reading must give a model's shape or a one-line error."""
    shape = replace(SHAPE, in_channels=channels, global_pool="avg")
    spec = Preprocessing(image_size=48, mean=(0.5,) * channels, std=(0.25,) * channels)
    content = timm_config(shape, replace(INFO, preprocessing=spec))
    assert content is not None
    for path in places(content):
        for value in ODD:
            changed = json.loads(json.dumps(content))
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            with suppress(XCiTError):
                config, info = read_timm_config(changed, "mine", "it")
                assert isinstance(config, XCiTConfig) and len(info.preprocessing.mean) == config.in_channels
                assert all(isinstance(number, float) for number in info.preprocessing.mean)
                assert len(info.class_names) in (0, config.num_classes)


def test_a_folder_is_written_whole_or_not_at_all(model: XCiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model.save_pretrained(tmp_path / "folder")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(XCiTError, match="already exists"):
        model.save_pretrained(folder)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xcit.zoo.folders._manifest", full)
    for place, overwrite in ((folder, True), (tmp_path / "other", False)):
        with pytest.raises(XCiTError, match="No space left on device"):
            model.save_pretrained(place, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "other").exists()
    with pytest.raises(XCiTError, match="fused model can't be saved"):
        model.fuse().save_pretrained(tmp_path / "fused")


def test_a_report_that_is_none(model: XCiT, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for text in ("[]", "{}", '{"data": "a", "num_images": 3}'):
        report.write_text(text)
        with pytest.raises(XCiTError, match=r"is not a report\.json of `xcit test`"):
            model.save_pretrained(tmp_path / "folder", report=report)
    assert not (tmp_path / "folder").exists()
    with pytest.raises(XCiTError, match="a licence and a report are only for the model card"):
        convert(xcit.fetch("packaged"), tmp_path / "new.pth", "timm", licence="mit")


# The Hub


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # a warning of the Hub's client
def test_push_and_load(model: XCiT, hub: Hub, tmp_path: Path) -> None:
    url = model.push_to_hub("birds", token="hf_none", licence="mit")
    assert url.startswith(f"{hub.url}/me/birds/commit/") and set(hub.files("me/birds")) == {
        CONFIG,
        WEIGHTS,
        CARD,
        MANIFEST,
    }
    for loaded in (XCiT.from_pretrained("me/birds"), xcit.get_model("hf-hub:me/birds")):
        assert (loaded.config, loaded.info) == (model.config, INFO)
        close(model, loaded)
    # A second commit is used immediately. The first commit can still be loaded by its hash.
    other = with_info(replace(SHAPE, num_classes=2), replace(INFO, class_names=("cat", "dog")))
    other.push_to_hub("me/birds", token="hf_none")
    assert xcit.get_model("hf-hub:me/birds").num_classes == 2
    first = f"{0:040x}"
    assert XCiT.from_pretrained("me/birds", revision=first).num_classes == 3
    assert xcit.get_model(f"hf-hub:me/birds@{first}").num_classes == 3


def test_without_the_hub_the_last_copy_is_used(
    model: XCiT, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.publish("me/birds", model.save_pretrained(tmp_path / "folder"))
    xcit.get_model("hf-hub:me/birds")
    asked = len(hub.asked)
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    close(model, xcit.get_model("hf-hub:me/birds"))
    with pytest.raises(
        XCiTError, match=r"hf-hub:me/cats: not requested, because XCIT_OFFLINE is set; instead, give a folder"
    ):
        xcit.get_model("hf-hub:me/cats")
    with pytest.raises(XCiTError, match="me/birds: not uploaded, because XCIT_OFFLINE is set"):
        model.push_to_hub("me/birds")
    assert len(hub.asked) == asked
    monkeypatch.delenv("XCIT_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "xcit"):
        close(model, xcit.get_model("hf-hub:me/birds"))
    assert "the copy on this machine is used" in caplog.text


def test_the_hubs_own_cache_is_read(model: XCiT, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download  # timm and transformers download with this function

    hub.publish("me/birds", model.save_pretrained(tmp_path / "folder"))
    for name in (CONFIG, WEIGHTS):
        hf_hub_download("me/birds", name, endpoint=hub.url, cache_dir=tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = xcit.get_model("hf-hub:me/birds")
    close(model, loaded)
    assert loaded.info == replace(INFO, name="birds")


def test_bad_repositories(model: XCiT, hub: Hub, tmp_path: Path) -> None:
    for name in ("hf-hub:me/none", "hf-hub:me/none@v2"):
        with pytest.raises(XCiTError, match=rf"{name}: HTTP 404 .*: the repository or revision does not exist"):
            xcit.get_model(name)
    for name in ("hf-hub:", "hf-hub:a/b/c", "hf-hub:../x"):
        with pytest.raises(XCiTError, match="is no repository of the Hub: write hf-hub:USER/REPO"):
            xcit.get_model(name)
    folder = model.save_pretrained(tmp_path / "folder")
    hub.publish("me/birds", folder)
    hub.wrong.add(WEIGHTS)
    with pytest.raises(XCiTError, match=r"hf-hub:me/birds: .*wrong file, expected SHA-256"):
        xcit.get_model("hf-hub:me/birds")
    assert not [*(tmp_path / "cache").rglob(f"{WEIGHTS}*[!k]")]
    hub.wrong.clear()
    close(model, xcit.get_model("hf-hub:me/birds"))
    with pytest.raises(XCiTError, match="only a repository of the Hub has revisions"):
        XCiT.from_pretrained(folder, revision="main")


def test_a_refused_upload_is_one_line(model: XCiT, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(XCiTError, match=re.escape("me/birds: can't be uploaded to http://127.0.0.1:9: ")) as caught:
        model.push_to_hub("me/birds", token="hf_none")
    assert "\n" not in str(caught.value)


def test_initial_weights_from_a_folder(model: XCiT, tmp_path: Path) -> None:
    from xcit.training.tasks.initialization import InitializeConfig, check_initialize, initialize

    folder = model.save_pretrained(tmp_path / "folder")
    started = XCiT(replace(SHAPE, num_classes=7))
    how = InitializeConfig(weights=str(folder))
    check_initialize(how, started.config)
    initialize(started, how)
    kept: dict[str, Tensor] = {
        name: value for name, value in model.state_dict().items() if not name.startswith("head.")
    }
    assert all(torch.equal(value, started.state_dict()[name]) for name, value in kept.items())
