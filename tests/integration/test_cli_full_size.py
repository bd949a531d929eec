"""Tests `--full-size`, `--memory` and `xcit max-size` on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import xcit
from xcit.cli import main
from xcit.errors import XCiTError
from xcit.images.read import read_image

BAG = Path(xcit.__file__).parent / "zoo/packaged/images/bag.png"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Runs a command line in this process; returns its exit status."""
    monkeypatch.setattr("sys.argv", ["xcit", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Writes a grey TIFF of 300 x 90 pixels with garments on it."""
    bag = np.asarray(read_image(BAG).convert("L"))
    pixels = np.zeros((90, 300), np.uint8)
    for index in range(9):
        pixels[10 + 3 * index : 38 + 3 * index, 30 * index : 30 * index + 28] = bag
    tifffile.imwrite(tmp_path / "wide.tif", pixels, tile=(16, 16), compression="deflate")
    return tmp_path / "wide.tif"


def test_predict_at_full_size_is_the_whole_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wide: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "scratch"
    options = ("--full-size", "--memory", "1GB", "--scratch", folder, "--json", "-")
    assert run(monkeypatch, "predict", BAG, wide, *options) == 0
    printed = capsys.readouterr()
    small, large = json.loads(printed.out)
    (expected,) = xcit.predict(BAG)  # 28 pixels, the size of the model's images
    assert small["classes"][0]["name"] == expected.classes[0].name == "Bag"
    assert small["classes"][0]["score"] == pytest.approx(expected.classes[0].score, rel=1e-4)
    assert len(large["classes"]) == 5
    lines = printed.err.splitlines()
    assert "28 x 28 pixels" in lines[0] and "300 x 90 pixels" in lines[1] and "megapixels per second" in lines[1]


def test_features_at_full_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wide: Path, tmp_path: Path
) -> None:
    shape = (23, 75)  # ceil of a quarter
    common = ("features", wide, "--full-size", "--memory", "1GB")
    assert run(monkeypatch, *common, "--out", tmp_path / "a.npz", "--out-type", "featmap") == 0
    assert run(monkeypatch, *common, "--out", tmp_path / "a.npy", "--out-type", "featmap") == 0
    model: Any = xcit.get_model("packaged", pretrained=True)
    whole = np.load(tmp_path / "a.npz")
    last = model.config.depth + model.config.cls_depth - 1
    found = whole[f"block_{last}"][0]
    assert found.shape == (model.config.embed_dim, *shape)
    streamed = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert streamed.dtype == np.float32 and np.array_equal(streamed.transpose(2, 0, 1), found)
    image = np.asarray(tifffile.imread(wide))
    (cls,) = xcit.extract_features(image, model, full_size=True, out_type="cls_token", memory=10**9)
    (raw,) = xcit.extract_features(image, model, full_size=True, out_type="raw")
    (mean,) = xcit.extract_features(image, model, full_size=True, out_type="avg_featmap")
    assert np.allclose(raw.layers[last][0], cls.layers[last], atol=1e-5)
    assert np.allclose(raw.layers[last][1:].T.reshape(found.shape), found, atol=1e-5)
    assert np.allclose(raw.layers[last][1:].mean(axis=0), mean.layers[last], atol=1e-5)
    capsys.readouterr()


def test_attention_at_full_size_is_that_of_the_whole_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wide: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    png = tmp_path / "wide.png"
    Image.fromarray(tifffile.imread(wide)).save(png)
    for path, out, options in ((wide, "large", ("--full-size", "--memory", "1GB")), (png, "small", ())):
        assert run(monkeypatch, "attention", path, "--out", tmp_path / out, "--arrays", *options) == 0
        assert {file.name for file in (tmp_path / out).iterdir()} == {
            "wide-attention.png",
            "wide-overlay.png",
            "wide.npz",
        }
    large, small = (np.load(tmp_path / name / "wide.npz") for name in ("large", "small"))
    assert np.abs(large["heads"] - small["heads"]).max() <= 1e-5 * small["heads"].max()
    assert large["patch_size"] == small["patch_size"]
    capsys.readouterr()


def test_a_picture_of_a_large_image_is_a_small_copy(monkeypatch: pytest.MonkeyPatch, wide: Path) -> None:
    monkeypatch.setattr("xcit.inference.full_size.OVERVIEW_PIXELS", 10000)
    (maps,) = xcit.explain.class_attention(wide, full_size=True, memory="1GB")
    assert (maps.scale, maps.patch_size, maps.image.shape) == (2, 2, (45, 150, 3))
    assert maps.heads.shape[1:] == (23, 75) and maps.overlay().size == (150, 45)


def test_max_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "max-size", "xcit-nano-12-p16_3rdparty_in1k", "--memory", "1GB") == 0
    first, whole, streamed = capsys.readouterr().out.splitlines()
    assert "in 1.0 GB of memory" in first
    assert whole.split()[0] == "whole" and streamed.split()[0] == "streamed" and "scratch" in streamed
    sides = [int(line.split()[1].replace(",", "")) for line in (whole, streamed)]
    assert 15000 < sides[0] < 22000 < sides[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", BAG, "--memory", "1GB"), "--memory is for images at their own size: give --full-size too"),
        (("predict", BAG, "--full-size", "--memory", "much"), "'much' is not a size such as 4GB"),
        (("features", BAG, "--out", "a.npy"), "a .npy file contains one map"),
        (("attention", BAG, "--out", "a", "--full-size", "--resize", "64"), "give --full-size, or --resize, not both"),
        (("max-size", "packaged", "--memory", "1kB"), "no image can be processed in 1 kB of memory"),
    ],
)
def test_mistakes_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_an_image_that_can_not_go_through_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wide: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "four.npy", np.zeros((30, 30, 4), np.uint8))
    assert run(monkeypatch, "predict", tmp_path / "four.npy", wide, "--full-size") == 1
    printed = capsys.readouterr()
    assert f"{tmp_path / 'four.npy'}: has 4 channels, the model takes 1" in printed.err
    assert printed.out.splitlines()[0] == str(wide)
    with pytest.raises(XCiTError, match="memory is used only with full_size"):
        xcit.predict(BAG, memory="1GB")
