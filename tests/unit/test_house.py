"""Tests the whole package: all modules can be imported, no module hides a function, and no old import path exists."""

import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import xcit
from xcit.cli import _VERBS
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.models import SegmenterInfo

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "src/xcit/zoo/packaged/images/bag.png"

OLD_NAMES = (
    r"xcit\.(engine|tasks|recipes|evaluation|explain\.(attention|pictures)|knn|linear|counting|bench|segmenting|detecting)",
    r"xcit\.(segmentation_pictures|detection_pictures|ops\.triton|ops\.resize_8bit|models\.kernels)",
    r"xcit\.data\.(images|preprocess|resize)",
    r"xcit\.weights\.(load|convert)",
    r"xcit\.zoo\.(imagenet|ade20k|coco)",
    r"xcit\.training\.(train|engine\.(train|curves)|tasks\.(linear|pictures))",
    r"gpu_parts",
)


def modules() -> list[str]:
    return [found.name for found in pkgutil.walk_packages(xcit.__path__, "xcit.") if found.name != "xcit.__main__"]


def calls(folder: Path) -> dict[str, Callable[[], object]]:
    """Returns a call of each public function; functions that take hours get arguments that they refuse."""

    def refused(call: Callable[[], object]) -> None:
        with pytest.raises(XCiTError):
            call()

    def known(name: str) -> Any:
        return xcit.get_model(name)

    def segmenter() -> Any:
        model = xcit.get_model("sem-fpn_xcit-tiny-12-p16_80k_ade20k")
        model.info = SegmenterInfo(name="random", preprocessing=SegmentationPreprocessing(long_side=64, short_side=64))
        return model

    weights = folder / "packaged.safetensors"
    return {
        "Unreadable": lambda: xcit.Unreadable(source="a.png", reason="a.png: no such file"),
        "XCiT": lambda: xcit.XCiT(xcit.XCiTConfig(embed_dim=16, depth=1, num_heads=2)),
        "XCiTConfig": xcit.XCiTConfig,
        "XCiTError": xcit.XCiTError,
        "complexity": lambda: xcit.complexity(xcit.XCiTConfig(embed_dim=16, depth=1, num_heads=2), 32),
        "convert": lambda: xcit.convert(xcit.fetch("packaged"), folder / "out.pth", "timm", overwrite=True),
        "detect": lambda: xcit.detect(
            IMAGE, known("mask-rcnn_xcit-tiny-12-p16_3x_coco"), min_score=1.0, sides=(64, 64)
        ),
        "evaluate_knn": lambda: refused(lambda: xcit.evaluate_knn("packaged", "nowhere")),
        "export": lambda: refused(lambda: xcit.export("packaged", folder / "a.xyz")),
        "extract_features": lambda: xcit.extract_features(IMAGE),
        "fetch": lambda: xcit.fetch("packaged"),
        "find_checkpoint": lambda: xcit.find_checkpoint("packaged"),
        "get_backbone": lambda: xcit.get_backbone("packaged"),
        "get_model": lambda: xcit.get_model("packaged"),
        "list_models": xcit.list_models,
        "load_exported": lambda: refused(lambda: xcit.load_exported(folder / "nowhere.onnx")),
        "load_weights": lambda: xcit.load_weights(known("packaged"), xcit.fetch("packaged")),
        "predict": lambda: xcit.predict(IMAGE),
        "save_model": lambda: xcit.save_model(xcit.get_model("packaged"), weights),
        "segment": lambda: xcit.segment(IMAGE, segmenter()),
        "test": lambda: refused(lambda: xcit.test("xcit-pico-fashion-mnist", "packaged", "nowhere")),
        "train": lambda: refused(lambda: xcit.train("no recipe", folder)),
        "train_linear": lambda: refused(lambda: xcit.train_linear("packaged", "nowhere", folder / "run")),
        "verify": lambda: xcit.verify("packaged"),
    }


def test_every_public_function_is_called_here() -> None:
    assert calls(Path()).keys() == {*xcit.__all__}


@pytest.mark.parametrize("name", xcit.__all__)
def test_public_functions_stay_themselves_with_every_module_imported(name: str, tmp_path: Path) -> None:
    for module in modules():
        importlib.import_module(module)
    first = getattr(xcit, name)
    for _ in range(2):
        calls(tmp_path)[name]()
        assert getattr(xcit, name) is first and callable(first)


def test_the_rooms_are_those_of_the_contract() -> None:
    rooms = {name.split(".")[1] for name in modules()}
    assert rooms == {
        "cli", "measure", "training", "explain", "inference", "data", "deploy", "zoo", "models", "images", "weights",
        "draw", "config", "integrations", "ops", "streaming", "errors", "seeding", "machine", "extras", "regular",
        "terminal", "writing", "connections", "progress",
    }  # fmt: skip
    assert not rooms & {*xcit.__all__}


def test_no_old_address_is_left() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(rf"(?<![\w.])({'|'.join(OLD_NAMES)})(?![\w])")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", "") and path.is_file() and path != Path(__file__):
            found += [f"{name}: {match[0]}" for match in pattern.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--hepl",),
        ("prdict",),
        *((verb, "--nosuch", "3") for verb in _VERBS),
        *((verb, "xcit-pico-fashion-mnist", "--schedule.epoch", "3") for verb in ("train", "config")),
        ("train", "xcit-pico-fashion-mnist", "--dat", "folder"),
        ("train", "xcit-pico-fashion-mnist", "--data", "folder", "--run.seed"),
        ("bench", "pico-6-p4", "--sizes", "many"),
        ("predict", "a.png", "--batch-size", "0"),
    ],
)
def test_a_slip_of_the_keyboard_needs_no_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(bool({'torch', 'numpy', 'PIL'} & sys.modules.keys())));"
        "from xcit.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "False\n")
