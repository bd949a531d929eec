"""Tests `xcit export`, and the exported file as the model of other verbs."""

import json
from pathlib import Path

import pytest
import torch

import xcit as package
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig

IMAGES = Path(package.__file__).parent / "zoo" / "packaged" / "images"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Writes a folder with those files of a training run that an export reads."""
    torch.manual_seed(0)
    model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, cls_depth=1, num_classes=3)).eval()
    spec = Preprocessing(image_size=32, resize_to=32, mean=(0.4,) * 3, std=(0.3,) * 3)
    model.info = ModelInfo(name="fruit", preprocessing=spec, class_names=("apple", "pear", "plum"))
    (tmp_path / "run").mkdir()
    package.save_model(model, tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def test_exported_and_used(xcit, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "fruit.pt2"
    done = xcit("export", weights, "--to", "torch-export", "--out", path, "--size", 40)
    assert done.status == 0, done.err
    assert f"{path}: logits of images of 40x40 pixels, float32, " in done.out
    assert "largest difference from the model" in done.out
    found = []
    for model in (path, weights / "model.safetensors"):
        done = xcit("predict", IMAGES / "bag.png", "--model", model, "--size", 40, "--json", tmp_path / "out.json",
                    "--device", "cpu")  # fmt: skip
        assert done.status == 0, done.err
        found.append(json.loads((tmp_path / "out.json").read_text()))
    assert [one["name"] for one in found[0][0]["classes"]] == [one["name"] for one in found[1][0]["classes"]]
    for arguments, message in (
        (("predict", IMAGES, "--model", path, "--size", 48), "was exported for images of 40x40 pixels, not of 48x48"),
        (("predict", IMAGES, "--model", path, "--weights", "a.pth"), "an exported file can't be changed"),
        (("features", IMAGES, "--model", path, "--out", tmp_path / "f.npz"), "only returns logits"),
        (("segment", IMAGES, "--model", path, "--out", tmp_path / "labels"), "is no segmenter"),
        (("export", path, "--to", "onnx"), "is an exported file already"),
    ):
        done = xcit(*arguments, "--device", "cpu") if arguments[0] != "export" else xcit(*arguments)
        assert done.status == 2
        assert message in done.err and len(done.err.splitlines()) <= 2, done.err
    done = xcit("bench", path, "--sizes", 40, "--rounds", 1, "--no-memory", "--device", "cpu", "--json")
    assert done.status == 0 and json.loads(done.out)["speeds"][0]["image_size"] == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "onnx", "--int8", "empty"), "empty"),
        (("--to", "onnx", "--int8", "empty", "--dtype", "float16"), "give --int8 or --dtype, not both"),
        (("--to", "torch-export", "--out", "a.onnx"), "an export to torch-export is a file ending in .pt2"),
        (("--to", "openvino", "--features", "cls_token", "--layers", "0"), "block 0 has no class token"),
    ],
)
def test_what_can_not_be_leaves_nothing(
    xcit, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    done = xcit("export", weights, *options)
    assert done.status == 2
    assert message in done.err and len(done.err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]
