"""Tests exported files: each kind of model and each format, the use of a file as a model, and refused exports."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_models import BACKBONE, CLASSIFIER, lively

import xcit
from xcit.deploy import ExportReport, FeatureOutput, check, exporting
from xcit.deploy.operators import TENSORRT, operators_of
from xcit.deploy.running import Exported
from xcit.deploy.sheet import EXPORT_KEY, Sheet, read_sheet
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing
from xcit.inference.calibration import calibration_images
from xcit.inference.segment import SlidingWindow
from xcit.measure.speed import SpeedConfig, measure_speed
from xcit.models import ModelInfo, SegmenterInfo, XCiT
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.segmentation import Segmenter, SegmenterConfig, build_segmenter
from xcit.zoo.kinds import DETECTOR

NAMES = ("apple", "pear", "plum", "fig", "quince")
SHALLOW = replace(CLASSIFIER, depth=1, cls_depth=1)
SPEC = Preprocessing(image_size=32, resize_to=36, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
IMAGES = torch.rand(3, 3, 41, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classifier() -> XCiT:
    torch.manual_seed(0)
    model: XCiT = lively(XCiT(SHALLOW))
    model.info = ModelInfo(name="fruit", preprocessing=SPEC, class_names=NAMES)
    return model


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (50, 70, 3), np.uint8)).resize((140, 100)).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def onnx_file(classifier: XCiT, folder: Path) -> Path:
    report = xcit.export(classifier, folder / "fruit.onnx")
    assert report.difference.value < 1e-5
    assert len({*report.difference.sizes}) == 5 and report.difference.batch_sizes == (1, 3)
    assert report.num_bytes == (folder / "fruit.onnx").stat().st_size
    return folder / "fruit.onnx"


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_classifier_in_onnx(classifier: XCiT, onnx_file: Path, picture: Path) -> None:
    model: Any = xcit.load_exported(onnx_file)
    assert model.info == classifier.info and model.config == classifier.config
    assert model.sheet.facts.source == "fruit"
    with torch.no_grad():
        close(model(IMAGES), classifier(IMAGES))
    ours, theirs = (xcit.predict(picture, given) for given in (onnx_file, classifier))
    assert [one.name for one in ours[0].classes] == [one.name for one in theirs[0].classes]
    assert [one.score for one in ours[0].classes] == pytest.approx([one.score for one in theirs[0].classes], abs=1e-5)
    report = measure_speed(str(onnx_file), SpeedConfig(sizes=(32,), rounds=1, memory=False, device="cpu"))
    assert report.speeds[0].milliseconds > 0


def test_what_an_exported_file_does_not_do(onnx_file: Path, picture: Path) -> None:
    model: Any = xcit.load_exported(onnx_file)
    for call, message in (
        (lambda: model(IMAGES.double()), "accepts float32 images, and its precision"),
        (lambda: model(IMAGES[:, :, :7]), "smaller than one patch of 8x8"),
        (lambda: model(IMAGES[:, :2]), "images have 2 channels, the model takes 3"),
        (lambda: model.train(), "an exported file can't be trained"),
        (lambda: model.head(IMAGES), r"an exported file has no layers \(head\)"),
        (
            lambda: model.forward_features(IMAGES),
            "an exported file has no tokens or intermediates: it only returns logits",
        ),
        (lambda: xcit.extract_features(picture, onnx_file), "only returns logits"),
        (lambda: xcit.predict(picture, onnx_file, full_size=True), "an exported file can't process images in stripes"),
        (lambda: xcit.segment(picture, onnx_file), "fruit.onnx is no segmenter"),
        (lambda: xcit.detect(picture, onnx_file), "fruit.onnx is no detector"),
        (lambda: xcit.export(onnx_file, "again.onnx"), "is an exported file already"),
    ):
        with pytest.raises(XCiTError, match=message) as error:
            call()
        assert "\n" not in str(error.value) and len(str(error.value)) <= 400


@pytest.fixture
def _captured_already(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the ONNX exporter by a copy of `onnx_file`, because each export of a graph takes seconds."""

    def write(graph: object, path: Path, texts: dict[str, str], opset: int) -> None:
        model = onnx.load(onnx_file)
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)

    monkeypatch.setattr(exporting, "write_onnx", write)


@pytest.mark.usefixtures("_captured_already")
def test_openvino_reads_the_same(classifier: XCiT, folder: Path, picture: Path) -> None:
    place = folder / "fruit_openvino"
    report = xcit.export(classifier, place, dtype="float16")
    assert sorted(path.name for path in place.iterdir()) == ["model.bin", "model.xml"]
    assert report.difference.value < 1e-2
    model: Any = xcit.load_exported(place)
    assert model.info == classifier.info and model.sheet.facts.precision == "float16"
    with torch.no_grad():
        close(model(IMAGES), classifier(IMAGES), 1e-2)
    assert xcit.predict(picture, place)[0].classes[0].name == xcit.predict(picture, classifier)[0].classes[0].name
    with pytest.raises(XCiTError, match="already exists"):
        xcit.export(classifier, place)


def test_features_with_their_normalisation_in_a_program(classifier: XCiT, folder: Path, picture: Path) -> None:
    path = folder / "fruit.pt2"
    report = xcit.export(classifier, path, normalize=True, features=FeatureOutput(out_type="featmap", layers=(0, -1)))
    assert report.sheet.sentence() == "featmap of blocks 0, 1"
    model: Any = xcit.load_exported(path)
    assert model.info.preprocessing == replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3)
    settings: Any = {"out_type": "featmap", "layers": (0, 1)}
    ours, theirs = (xcit.extract_features(picture, given, **settings)[0] for given in (path, classifier))
    assert [*ours.layers] == [0, 1]
    for block in (0, 1):
        np.testing.assert_allclose(ours.layers[block], theirs.layers[block], rtol=1e-4, atol=1e-4)
    with pytest.raises(
        XCiTError, match=r"returns featmap of blocks 0, 1, not cls_token of 1: ask for --out-type featmap"
    ):
        xcit.extract_features(picture, path)
    with pytest.raises(XCiTError, match="has no classifier"):
        xcit.predict(picture, path)
    with pytest.raises(XCiTError, match="images of 8x8 pixels are too small for this program"):
        model.extract_feat(IMAGES[:, :, :8, :8], out_type="featmap", out_indices=(0, 1))


def test_tensorrts_file_is_of_one_size_in_float16(classifier: XCiT, folder: Path) -> None:
    path = folder / "engine.onnx"
    report = xcit.export(classifier, path, "tensorrt")
    assert (report.sheet.facts.precision, report.sheet.facts.size) == ("float16", (32, 32))
    assert report.difference.value < 0.02
    operators = operators_of(path)
    assert {"Conv", "LayerNormalization", "MatMul", "Softmax"} <= operators <= TENSORRT
    model: Any = xcit.load_exported(path)
    with torch.no_grad():
        close(model(IMAGES[:, :, :32, :32]), classifier(IMAGES[:, :, :32, :32]), 0.05)
    with pytest.raises(XCiTError, match="was exported for images of 32x32 pixels, not of 41x56"):
        model(IMAGES)


@pytest.mark.usefixtures("_captured_already")
def test_int8_is_calibrated(classifier: XCiT, folder: Path) -> None:
    path = folder / "whole_numbers.onnx"
    draw = torch.Generator().manual_seed(1)
    batches = [torch.randn(1, 3, 32, 32, generator=draw) for _ in range(6)]
    report = xcit.export(classifier, path, dtype="int8", calibration=batches)
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators_of(path)
    assert 0 < report.difference.value < 0.3
    model: Any = xcit.load_exported(path)
    assert model.info.class_names == NAMES and model.sheet.facts.precision == "int8"
    with torch.no_grad():
        assert model(IMAGES).shape == (3, 5)
    with pytest.raises(XCiTError, match="no images to calibrate on"):
        xcit.export(classifier, folder / "none.onnx", dtype="int8", calibration=[])
    assert not (folder / "none.onnx").exists()


def test_a_segmenter(folder: Path, picture: Path) -> None:
    torch.manual_seed(0)
    config = SegmenterConfig(kind="sem-fpn", backbone=replace(BACKBONE, depth=1), num_classes=4, channels=8)
    model: Segmenter = lively(build_segmenter(config))
    spec = SegmentationPreprocessing(long_side=80, short_side=48)
    model.info = SegmenterInfo(name="scenes", preprocessing=spec, class_names=("a", "b", "c", "d"))
    path = folder / "scenes.onnx"
    assert xcit.export(model, path).difference.value < 1e-5
    ours, theirs = (xcit.segment(picture, given)[0] for given in (path, model))
    assert ours.class_names == theirs.class_names
    assert (ours.labels == theirs.labels).mean() > 0.999
    window = SlidingWindow(size=40, stride=30)
    slid = [xcit.segment(picture, given, window=window, full_size=True)[0].labels for given in (path, model)]
    assert (slid[0] == slid[1]).mean() > 0.999
    opened: Any = xcit.load_exported(path)
    with pytest.raises(XCiTError, match="has no auxiliary head"):
        opened(IMAGES, with_auxiliary=True)


@pytest.fixture(scope="module")
def detector() -> MaskRCNN:
    torch.manual_seed(0)
    config = MaskRCNNConfig(
        backbone=replace(BACKBONE, depth=1), num_classes=3, channels=8, box_features=8, short_side=64, long_side=96
    )
    model: MaskRCNN = lively(MaskRCNN(config))
    model.info = DetectorInfo(name="things", class_names=("a", "b", "c"), category_ids=(1, 5, 7))
    return model


@pytest.fixture(scope="module")
def things(detector: MaskRCNN, folder: Path) -> ExportReport:
    return xcit.export(detector, folder / "things.onnx", normalize=True)


def test_a_detector_finds_as_many_objects_as_there_are(detector: MaskRCNN, things: ExportReport, picture: Path) -> None:
    path, found = things.path, things.difference
    assert found.value < 1e-3 and found.num_detections > 0
    assert found.num_unmatched <= 0.05 * found.num_detections
    assert "without a counterpart" in found.sentence()
    for score in (0.05, 0.3):
        ours, theirs = (xcit.detect(picture, given, min_score=score)[0].objects for given in (path, detector))
        assert len(ours) == len(theirs)
        # The order may differ, because the scores of random weights are almost equal.
        boxes = {name: np.array([one.box for one in ours if one.name == name]) for name in ("a", "b", "c")}
        nearest = [np.abs(boxes[one.name] - one.box).max(axis=1).min() for one in theirs]
        assert (np.array(nearest) < 0.05).mean() > 0.8
    with pytest.raises(XCiTError, match=r"only returns scores above 0.05"):
        xcit.detect(picture, path, min_score=0.01)


def test_a_detectors_file_of_one_size_in_float16(detector: MaskRCNN, folder: Path, picture: Path) -> None:
    path = folder / "square.onnx"
    report = xcit.export(detector, path, "web", size=96, dtype="float16", opset=20)
    found = report.difference
    assert {*found.sizes} == {(96, 96), (96, 64), (49, 96)}
    assert found.num_detections and found.value < 0.1
    assert found.num_unmatched <= 0.2 * found.num_detections
    written = onnx.load(path)
    assert [one.version for one in written.opset_import if one.domain == ""] == [20]
    kernels = [one for one in written.graph.initializer if len(one.dims) == 4]
    assert kernels and {one.data_type for one in kernels} == {onnx.TensorProto.FLOAT16}
    model: Any = xcit.load_exported(path)
    assert (model.config.short_side, model.config.long_side) == (96, 96)
    # An image of 100 x 140 pixels is resized to 69 x 96, and padded to 96 x 96.
    image = torch.from_numpy(np.array(Image.open(picture)).transpose(2, 0, 1).copy())
    ours, prepared = model.detect(image), detector.prepare(image, (96, 96))
    assert prepared[0].shape[1:] == (69, 96)
    theirs = detector._search(*prepared, min_score=0.05, padded=(96, 96))
    matched = check._matched(ours, theirs)
    assert len(matched) > 0.8 * max(len(ours.boxes), len(theirs.boxes)) > 0
    with pytest.raises(XCiTError, match="was exported for images of 96x96 pixels, not of 96x160"):
        model.detect(image, sides=(96, 160))
    with pytest.raises(XCiTError, match="a detector needs a square, with a side that is a multiple of 32"):
        xcit.export(detector, folder / "odd.onnx", size=80)


def test_a_detector_in_int8(
    detector: MaskRCNN, things: ExportReport, folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "write_onnx", lambda graph, path, texts, opset: shutil.copy(things.path, path))
    monkeypatch.setitem(check.MAX_UNMATCHED, "int8", 1.0)  # random weights give boxes with nearly equal scores
    from xcit.models.detection.roi_heads import Detections

    images = [image for image in calibration_images([picture] * 2, detector) if isinstance(image, torch.Tensor)]
    assert [image.shape for image in images] == [(1, 3, 64, 90)] * 2
    path = folder / "whole_things.onnx"
    report = xcit.export(detector, path, normalize=True, dtype="int8", calibration=images)
    assert {"QuantizeLinear", "DequantizeLinear", "RoiAlign", "NonMaxSuppression"} <= operators_of(path)
    assert report.difference.num_detections and report.num_bytes < things.num_bytes
    model: Any = xcit.load_exported(path)
    assert xcit.detect(picture, path, min_score=0.05)[0].objects
    assert model.info == detector.info
    with pytest.raises(XCiTError, match="a detector takes one image at a time, not 2"):
        xcit.export(detector, folder / "two.onnx", dtype="int8", calibration=[torch.cat(images)])
    monkeypatch.setattr(MaskRCNN, "_search", lambda *given, padded: Detections(*[torch.zeros(0, 4)] * 4))
    with pytest.raises(XCiTError, match="no images to calibrate on, or the detector finds no objects in them"):
        xcit.export(detector, folder / "two.onnx", dtype="int8", calibration=images)
    assert not (folder / "two.onnx").exists()


# --- exports that are refused before the model is traced


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("a.onnx", {"to": "openvino"}, "an export to openvino is a folder"),
        ("a.pt2", {"to": "onnx"}, "an export to onnx is a file ending in .onnx"),
        ("a.trt", {}, "unknown suffix"),
        ("nowhere/a.onnx", {}, "there is no folder"),
        ("a.onnx", {"to": "coreml"}, "there is no export to 'coreml'"),
        ("a.onnx", {"dtype": "int8"}, "int8 needs images for calibration"),
        ("a.onnx", {"calibration": [IMAGES]}, "int8 needs images for calibration"),
        ("a.pt2", {"dtype": "int8", "calibration": [IMAGES]}, "int8 is for onnx, openvino and web"),
        ("a.onnx", {"to": "tensorrt", "dtype": "float32"}, "an export to tensorrt is in float16"),
        ("a.onnx", {"dtype": "float8"}, "there is no dtype 'float8'"),
        ("a.onnx", {"opset": 11}, r"the ONNX operator set is 11, but must be 18 to [0-9]+: older sets lack operators"),
        ("a.onnx", {"opset": 99}, "the ONNX operator set is 99, but must be 18 to"),
        ("a.pt2", {"opset": 18}, "an export to torch-export has no ONNX operator set"),
        ("a.onnx", {"size": (0, 8)}, "the size is 0x8 pixels"),
        ("a.onnx", {"features": FeatureOutput(layers=(0,))}, "block 0 has no class token"),
        ("a.onnx", {"features": FeatureOutput(layers=(9,))}, "9"),
    ],
)
def test_what_can_not_be_is_said_first(
    classifier: XCiT, tmp_path: Path, path: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(XCiTError, match=message) as error:
        xcit.export(classifier, tmp_path / path, **settings)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_differs_is_not_left_behind(
    classifier: XCiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [classifier(inputs[0]) * 1.01]

    monkeypatch.setattr(exporting, "_write", lambda *given: given[4].write_text("a graph"))
    monkeypatch.setattr(exporting, "open_run", lambda path, num_threads: wrong)
    path = tmp_path / "model.onnx"
    path.write_text("an earlier one")
    with pytest.raises(XCiTError, match=r"differs from the model and was not kept: largest difference .* 1\.0e-02"):
        xcit.export(classifier, path)
    assert path.read_text() == "an earlier one"
    assert [*tmp_path.iterdir()] == [path]


def test_detections_are_matched_by_class_place_and_score() -> None:
    from xcit.models.detection.roi_heads import Detections

    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    labels, scores, masks = torch.tensor([1, 2, 2]), torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, 2, 2)
    order = torch.tensor([2, 0, 1])
    ours = Detections(boxes[order] + 0.5, labels[order], scores[order], masks)
    assert sorted(map(tuple, check._matched(ours, Detections(boxes, labels, scores, masks)).tolist())) == [
        (0, 2),
        (1, 0),
        (2, 1),
    ]
    moved = Detections(boxes + 8, labels, scores, masks)
    assert len(check._matched(moved, Detections(boxes, labels, scores, masks))) == 0


def _answer(found: Any, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(found)


def test_a_detectors_file_that_finds_nothing_or_no_numbers_is_refused() -> None:
    from types import SimpleNamespace

    from xcit.models.detection.roi_heads import Detections

    none = Detections(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 28, 28))
    one = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([1]), torch.tensor([0.9]), torch.ones(1, 28, 28))
    model: Any = torch.nn.Module()
    model._search = lambda *given, padded: one
    facts = SimpleNamespace(size=None, precision="int8")
    sheet: Any = SimpleNamespace(kind=DETECTOR, facts=facts, channels=3)
    image = torch.zeros(1, 3, 32, 32)
    for found, worst in ((one, 0.0), (none, math.inf), (one._replace(masks=one.masks * math.nan), math.inf)):
        run: Any = partial(_answer, found)
        difference = check._compare_detections(run, model, sheet, [(image, image, torch.ones(4))])
        assert difference.value == worst
        if worst:
            with pytest.raises(XCiTError, match="differs from the model"):
                check._checked(difference, "int8")


# --- files of others


def test_files_that_were_not_exported_here(onnx_file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    (tmp_path / "broken.pt2").write_bytes(b"nothing")
    (tmp_path / "model.xml").write_text("<nothing/>")
    later = onnx.load(onnx_file)
    later.opset_import[0].version = 99
    onnx.save(later, tmp_path / "later.onnx")
    for path, message in (
        (tmp_path / "absent.onnx", "no such file"),
        (tmp_path / "broken.onnx", "ONNX Runtime [0-9.]+ can't read it: Protobuf parsing failed"),
        (
            tmp_path / "later.onnx",
            "can't read it: it has operator set 99, but this version only reads operator sets up to [0-9]+: export",
        ),
        (tmp_path / "broken.pt2", "torch .* can't read it"),
        (tmp_path, "OpenVINO .* can't read it"),
        (tmp_path / "a.txt", "not an exported file"),
    ):
        with pytest.raises(XCiTError, match=message) as error:
            xcit.load_exported(path)
        assert "\n" not in str(error.value)


def test_metadata_of_other_programs_and_later_versions(onnx_file: Path) -> None:
    model: Any = xcit.load_exported(onnx_file)
    assert isinstance(model, Exported)
    texts = model.sheet.texts()
    assert read_sheet(texts, "a.onnx") == model.sheet
    later = json.loads(texts[EXPORT_KEY]) | {"version": 2, "made_by": "xcit 9.0"}
    features = replace(model.sheet.facts, features=FeatureOutput(layers=(3,)))
    other = Sheet(kind=model.sheet.kind, config=model.config, info=None, facts=features)
    assert read_sheet(other.texts(), "a.onnx") == other
    for given, message in (
        ({}, "a.onnx: was not written by xcit export"),
        (texts | {EXPORT_KEY: json.dumps(later)}, r"was written by xcit 9\.0, with metadata of version 2"),
        (texts | {EXPORT_KEY: "{"}, "its metadata can't be read"),
        (texts | {EXPORT_KEY: "[]"}, "another program"),
    ):
        with pytest.raises(XCiTError, match=message):
            read_sheet(given, "a.onnx")


@pytest.mark.parametrize("name", ["model.onnx", "folder"])
def test_a_runtime_that_is_missing(
    name: str, classifier: XCiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    hidden = "openvino" if name == "folder" else "onnxruntime"
    monkeypatch.setattr("xcit.extras.find_spec", lambda package: None if package == hidden else find_spec(package))
    with pytest.raises(XCiTError, match=rf"needs {hidden}: pip install 'xcit\[export\]'"):
        xcit.export(classifier, tmp_path / name)
    assert not [*tmp_path.iterdir()]
