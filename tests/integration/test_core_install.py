"""Tests every command in an installation without extras: it works, or ends with one line that names the extra."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import small_models
import without_extras
from PIL import Image

import xcit
from xcit.cli import _VERBS
from xcit.extras import EXTRAS
from xcit.zoo import save_model

ROOT = Path(__file__).parents[2]
IMAGE = str(ROOT / "src/xcit/zoo/packaged/images/bag.png")
PACKAGED = "xcit-pico-fashion-mnist"
SEGMENTER = "upernet_xcit-pico_fashion-scenes"
DETECTOR = "mask-rcnn_xcit-pico_fashion-scenes"

WORKS = {
    "list": ("list",),
    "info": ("info", PACKAGED),
    "info of a file": ("info", "detector.safetensors"),
    "predict": ("predict", IMAGE),
    "predict to JSON": ("predict", IMAGE, "--json", "out.json"),
    "features as npz": ("features", IMAGE, "--out", "f.npz"),
    "features as safetensors": ("features", IMAGE, "--out", "f.safetensors"),
    "segment": ("segment", IMAGE, "--model", "segmenter.safetensors", "--out", "labels", "--size", "32"),
    "test": ("test", PACKAGED, "packaged", "--data", "photos", "--workers", "0"),
    "knn": ("knn", PACKAGED, "--data", "photos", "--k", "1", "--workers", "0"),
    "config": ("config",),
    "config of a recipe": ("config", PACKAGED, "--schedule.epochs", "3"),
    "config of a segmenter": ("config", SEGMENTER),
    "config of a detector": ("config", DETECTOR),
    "config of DINO": ("config", "dino_xcit-pico_fashion-mnist"),
    "bench": ("bench", "pico-6-p4", "--sizes", "8", "--rounds", "1", "--no-memory"),
    "complexity": ("complexity", "nano-12-p16", "--sizes", "224"),
    "max-size": ("max-size", "nano-12-p16", "--memory", "4GB"),
    "fetch": ("fetch", PACKAGED),
    "convert": ("convert", "segmenter.safetensors", "s.pth", "--to", "mmseg"),
    "verify": ("verify", PACKAGED),
    "make-data of segmentation": (
        "make-data",
        "fashion-scenes",
        "--task",
        "segmentation",
        "--out",
        "scenes",
        "--train",
        "2",
        "--val",
        "1",
    ),
}
"""Commands that need no extra."""

NEEDS = {
    "features as Parquet": (("features", IMAGE, "--out", "f.parquet"), "pyarrow"),
    "predict as Parquet": (("predict", IMAGE, "--out", "parts"), "pyarrow"),
    "attention as Parquet": (("attention", IMAGE, "--out", "parts", "--parquet"), "pyarrow"),
    "attention": (("attention", IMAGE, "--out", "maps"), "matplotlib"),
    "detect": (("detect", IMAGE, "--model", "detector.safetensors", "--out", "found"), "faster_coco_eval"),
    "test of a detector": (
        ("test", DETECTOR, "detector.safetensors", "--data", "coco"),
        "faster_coco_eval",
    ),
    "make-data of detection": (
        ("make-data", "fashion-scenes", "--task", "detection", "--out", "found-scenes", "--train", "1", "--val", "1"),
        "faster_coco_eval",
    ),
    "export": (("export", PACKAGED, "--to", "onnx"), "onnx"),
    "linear": (("linear", PACKAGED, "--data", "photos"), "timm"),
    "train": (("train", PACKAGED, "--data", "photos"), "timm"),
    "data of the Hub": (("test", PACKAGED, "packaged", "--data", "hf:ylecun/mnist"), "datasets"),
}
"""Commands that need an extra, and the package that they need."""


@pytest.fixture(scope="module")
def results(tmp_path_factory, fashion_mnist) -> dict[str, tuple[object, str, str]]:
    """Runs all commands one by one in one process; returns the exit status, standard output and error of each."""
    folder = tmp_path_factory.mktemp("core")
    for kind, name in (("upernet", "segmenter"), ("detector", "detector")):
        save_model(small_models.build(kind), folder / f"{name}.safetensors")
    for split in ("train", "val"):
        for index, name in enumerate(("Bag", "Coat")):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            Image.new("L", (28, 28), 100 * index + 20).save(place / "one.png")
    (folder / "coco").mkdir()
    named = {**WORKS, **{name: command for name, (command, _) in NEEDS.items()}}
    (folder / "commands.json").write_text(json.dumps(list(named.values())), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(xcit.__file__).parents[1]), "XCIT_CACHE": str(folder / "cache")}
    command = [sys.executable, str(Path(without_extras.__file__)), "commands.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(named, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("name", WORKS)
def test_works_without_extras(results, name):
    status, _, complaint = results[name]
    assert (status, "rror" in complaint) == (0, False), complaint


@pytest.mark.parametrize("name", NEEDS)
def test_ends_in_one_line_that_names_the_extra(results, name):
    status, printed, complaint = results[name]
    package = NEEDS[name][1]
    assert (status, printed, complaint.count("\n")) == (2, "", 1), complaint
    assert complaint.startswith("xcit: error: ")
    assert complaint.endswith(
        (f"pip install 'xcit[{EXTRAS[package]}]'\n", f"(pip install 'xcit[{EXTRAS[package]}]')\n")
    )
    assert re.search(package.replace("_", "[-_]"), complaint)


def test_every_verb_is_tried():
    tried = {command[0] for command in [*WORKS.values(), *(command for command, _ in NEEDS.values())]}
    assert tried == set(_VERBS)


def test_what_is_hidden_is_what_the_extras_bring():
    core = without_extras.core_distributions()
    hidden = without_extras.hidden_modules(core)
    assert set(EXTRAS) <= hidden
    assert not {"torch", "torchvision", "numpy", "PIL", "rich", "click", "yaml", "fsspec", "xcit"} & hidden


def test_the_table_of_extras_is_pyprojects():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        named = {re.split(r"[<>=\[]", requirement)[0] for requirement in extras[extra]}
        assert {package.replace("_", "-"), f"{package}-python"} & named


def test_hints_come_from_the_table_alone():
    hints = [path for path in (ROOT / "src").rglob("*.py") if "xcit[" in path.read_text(encoding="utf-8")]
    assert hints == [ROOT / "src/xcit/extras.py"]
