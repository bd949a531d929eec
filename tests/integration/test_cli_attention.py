"""Tests `xcit attention`: its files and their contents, and the messages for inputs that can't be drawn."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.cli.predict import packaged_images
from xcit.explain import channel_attention, class_attention, largest_cells
from xcit.images.preprocess import Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.zoo import save_model

BAG = packaged_images()[1]
GARMENTS = "xcit: model xcit-pico-fashion-mnist, which only knows garments (10 classes)\n"


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def save_photograph(path: Path, height: int = 30, width: int = 45) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def no_class_attention(tmp_path_factory) -> Path:
    config = XCiTConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2, cls_depth=0, global_pool="avg", num_classes=3)
    model = XCiT(config)
    model.info = ModelInfo(name="plain", preprocessing=Preprocessing())
    path = tmp_path_factory.mktemp("models") / "plain.safetensors"
    save_model(model, path)
    return path


def test_without_input_the_packaged_images_are_drawn(xcit, tmp_path):
    done = xcit("attention", "--out", "maps", "--no-figures")
    assert (done.status, done.out, done.err) == (0, "maps: attention of 10 images\n", GARMENTS)
    assert files_in(tmp_path / "maps") == [f"{path.stem}-overlay.png" for path in packaged_images()]


def test_pictures_of_an_image_at_its_own_size(xcit, tmp_path):
    save_photograph(tmp_path / "a.jpg")
    done = xcit("attention", "a.jpg", "--out", "new/maps")
    assert (done.status, done.out, done.err) == (0, "new/maps: attention of 1 images\n", GARMENTS)
    assert files_in(tmp_path / "new") == ["maps/a-attention.png", "maps/a-overlay.png"]
    with Image.open("new/maps/a-overlay.png") as overlay, Image.open("new/maps/a-attention.png") as figure:
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGB", (45, 30))
        assert min(figure.size) > 300


@pytest.mark.parametrize("options", [(), ("--block", 0, "--threshold", 0.6, "--resize", 60), ("--xca",)], ids=str)
def test_arrays_are_those_of_the_python_call(xcit, tmp_path, options):
    save_photograph(tmp_path / "a.png")
    assert xcit("attention", "a.png", "--out", "maps", "--arrays", "--no-figures", *options).status == 0
    with np.load("maps/a.npz") as archive:
        found = dict(archive)
    block, resize = (0, 60) if "--block" in options else (-1, None)
    (maps,) = class_attention("a.png", block=block, resize=resize)
    expected: dict[str, Any] = {"heads": maps.heads, "mean": maps.mean, "class_token": maps.class_token}
    expected |= {"block": np.array(maps.block), "patch_size": np.array(4)}
    if "--threshold" in options:
        expected |= {"heads_kept": largest_cells(maps.heads, 0.6), "mean_kept": largest_cells(maps.mean, 0.6)}
    if "--xca" in options:
        (channels,) = channel_attention("a.png")
        expected |= {"covariance": channels.covariance, "channel_attention": channels.attention}
        expected |= {"temperatures": channels.temperatures}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, atol=1e-6)
    pictures_of_channels = ["a-xca.png", "temperatures.png"] if "--xca" in options else []
    assert files_in(tmp_path / "maps") == sorted(["a-overlay.png", "a.npz", *pictures_of_channels])


def test_precision_changes_little(xcit, tmp_path):
    save_photograph(tmp_path / "a.png")
    options = ("--out", "maps", "--arrays", "--no-figures", "--device", "cpu", "--dtype", "bfloat16")
    assert xcit("attention", "a.png", *options).status == 0
    with np.load("maps/a.npz") as archive:
        np.testing.assert_allclose(archive["heads"].sum(axis=(1, 2)) + archive["class_token"], 1, atol=1e-5)
        np.testing.assert_allclose(archive["heads"], class_attention("a.png")[0].heads, atol=0.1)


def test_folders_below_the_input_stay_folders(xcit, tmp_path):
    for name in ("in/one/a.png", "in/two/a.png", "in/b.c.png"):
        save_photograph(tmp_path / name)
    assert xcit("attention", "in", "--out", "maps", "--no-figures").status == 0
    assert files_in(tmp_path / "maps") == ["b.c-overlay.png", "one/a-overlay.png", "two/a-overlay.png"]


def test_images_that_share_a_name_keep_their_suffixes(xcit, tmp_path):
    for name in ("a.png", "A.jpg", "b.png"):
        save_photograph(tmp_path / name)
    assert xcit("attention", "a.png", "A.jpg", "b.png", "--out", "maps", "--no-figures").status == 0
    assert files_in(tmp_path / "maps") == ["A.jpg-overlay.png", "a.png-overlay.png", "b.png-overlay.png"]


def test_a_second_run_does_not_draw_the_pictures_of_the_first(xcit, tmp_path):
    save_photograph(tmp_path / "in" / "a.png")
    for _ in range(2):
        done = xcit("attention", "in", "--out", "in/maps", "--no-figures")
        assert (done.status, done.out) == (0, "in/maps: attention of 1 images\n")
    assert files_in(tmp_path / "in") == ["a.png", "maps/a-overlay.png"]
    assert xcit("attention", "in/a.png", "--out", "in", "--no-figures").status == 0
    refused = xcit("attention", "in", "--out", "in")
    assert refused.status == 2
    assert refused.err == "xcit: error: in: contains all images of the input: choose another folder for the results\n"


def test_goes_on_where_an_image_cannot_be_drawn(xcit, tmp_path):
    save_photograph(tmp_path / "a.png")
    save_photograph(tmp_path / "b.png", 3, 20)
    (tmp_path / "c.jpg").write_text("text")
    save_photograph(tmp_path / "d.png")
    done = xcit("attention", "a.png", "b.png", "c.jpg", "d.png", "missing.png", "--out", "maps", "--no-figures")
    assert (done.status, done.out) == (1, "maps: attention of 2 images\n")
    assert done.err.splitlines() == [
        "xcit: b.png: 20 x 3 pixels, smaller than one patch of 4 x 4; use resize to make the image larger",
        "xcit: c.jpg: not an image that can be read (it looks like text)",
        "xcit: missing.png: no such file",
        GARMENTS.rstrip(),
        "xcit: 3 of 5 images could not be read",
    ]
    assert files_in(tmp_path / "maps") == ["a-overlay.png", "d-overlay.png"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("empty --out maps", "empty: a folder without images"),
        ("*.jpg --out maps", "*.jpg: no image matches this pattern"),
        ("a.png --out file", "file: can't be made: File exists"),
        ("a.png --out file/maps", "file/maps: can't be made: Not a directory"),
        ("a.png --out maps --block 2", "there is no class attention block 2: xcit-pico-fashion-mnist has 2, counted"),
        ("a.png --out maps --resize 3", "resize is 3, but must be at least one patch of 4 pixels"),
        ("a.png --out maps --model plain.safetensors", "plain has no class attention: its cls_depth is 0"),
        ("a.png --out maps --model bare.safetensors", "bare.safetensors: the file does not say how to prepare images"),
        ("a.png --out maps --device cuda:99", "--device cuda:99: not on this machine"),
        ("a.png --out blocked", "blocked/a-overlay.png: can't be written: Is a directory"),
    ],
)
def test_mistake_is_told_in_one_line(xcit, no_class_attention, tmp_path, command, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "blocked" / "a-overlay.png").mkdir(parents=True)
    shutil.copy(BAG, tmp_path / "a.png")
    shutil.copy(no_class_attention, tmp_path / "plain.safetensors")
    with torch.random.fork_rng():
        save_model(XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2)), tmp_path / "bare.safetensors")
    before = files_in(tmp_path)
    done = xcit("attention", *command.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"xcit: error: {message}")
    assert done.err.count("\n") == 1
    assert files_in(tmp_path) == before, "nothing is written, nothing half-written is left"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("a.png", "Error: Missing option '--out'."),
        ("a.png --out maps --threshold 0", "0.0 is not in the range 0<x<=1"),
        ("a.png --out maps --threshold 1.5", "1.5 is not in the range 0<x<=1"),
        ("a.png --out maps --block last", "'last' is not a valid integer"),
    ],
)
def test_usage(xcit, command, message):
    done = xcit("attention", *command.split())
    assert done.status == 2
    assert message in done.err


def test_without_matplotlib(xcit, monkeypatch, tmp_path):
    monkeypatch.setattr("xcit.extras.find_spec", lambda name: None)
    done = xcit("attention", BAG, "--out", "maps")
    assert (done.status, done.err) == (
        2,
        "xcit: error: a picture of attention needs matplotlib: pip install 'xcit[train]'\n",
    )
    assert not (tmp_path / "maps").exists()
