"""Tests where commands write results, and that a command that fails or can read no input keeps earlier results."""

import csv
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.models import Segmenter, SegmenterInfo
from xcit.zoo import save_model

MODEL = "xcit: model xcit-pico-fashion-mnist, which only knows garments (10 classes)\n"


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "b.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_text("text")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["keep.npz", "keep.safetensors", "keep.parquet"])
def test_features_of_nothing_readable(xcit, tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    assert xcit("features", "a.png", "--out", name).status == 0
    before = (tmp_path / name).read_bytes()
    for inputs in (("nosuch.jpg",), ("broken.png",), ("no*such.jpg",)):
        done = xcit("features", *inputs, "--out", name)
        assert done.status in (1, 2)
        assert (tmp_path / name).read_bytes() == before
    assert xcit("features", "a.png", "b.png", "--out", name).status == 0
    assert (tmp_path / name).read_bytes() != before


@pytest.mark.parametrize("form", ["json", "csv"])
def test_predictions_of_nothing_readable(xcit, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"keep.{form}"
    assert xcit("predict", "a.png", f"--{form}", path).status == 0
    before = path.read_bytes()
    done = xcit("predict", "nosuch.jpg", f"--{form}", path)
    assert (done.status, path.read_bytes()) == (1, before)
    assert f"xcit: {path}: left as it was" in done.err
    # If there is no earlier result, the errors are the result.
    assert xcit("predict", "nosuch.jpg", f"--{form}", f"new.{form}").status == 1
    assert "no such file" in Path(f"new.{form}").read_text()


def small_segmenter(path: Path) -> None:
    from small_models import build

    from xcit.images.preprocess import SegmentationPreprocessing

    model = build("sem-fpn")
    assert isinstance(model, Segmenter)
    model.info = SegmenterInfo(name="small", preprocessing=SegmentationPreprocessing(long_side=48, short_side=32))
    save_model(model, path)


def small_detector(path: Path) -> None:
    from small_models import build

    save_model(build("detector"), path)


@pytest.mark.parametrize(
    ("verb", "make", "extra"),
    [("segment", small_segmenter, ()), ("detect", small_detector, ("--score", 0)), ("attention", None, ("--xca",))],
)
def test_pictures_of_nothing_readable(xcit, tmp_path: Path, verb: str, make, extra) -> None:
    if verb == "attention":
        pytest.importorskip("matplotlib")
    model: tuple[str, ...] = ()
    if make is not None:
        make(tmp_path / "small.safetensors")
        model = ("--model", "small.safetensors")
    assert xcit(verb, "a.png", *model, "--out", "out", *extra).status == 0
    before = contents(tmp_path / "out")
    assert len(before) > 1
    assert xcit(verb, "nosuch.jpg", "broken.png", *model, "--out", "out", *extra).status == 1
    assert contents(tmp_path / "out") == before


def test_convert_and_fetch_that_fail(xcit, tmp_path: Path) -> None:
    keep = tmp_path / "keep.pth"
    keep.write_bytes(b"earlier")
    torch.save({"no": torch.zeros(1)}, "wrong.pth")
    assert xcit("convert", "wrong.pth", keep, "--to", "timm", "--overwrite").status == 2
    assert keep.read_bytes() == b"earlier"
    assert xcit("fetch", "packaged", "--to", "mirror").status == 0
    before = contents(tmp_path / "mirror")
    assert xcit("fetch", "xcit-nano-12-p16_3rdparty_in1k", "--to", "mirror").status == 1
    assert contents(tmp_path / "mirror") == before


def test_make_data_that_fails_can_be_done_again(xcit, tmp_path: Path, fashion_mnist, monkeypatch) -> None:
    from xcit.data import fashion_scenes

    compose, calls = fashion_scenes.compose, []

    def fails_later(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return compose(*arguments)

    monkeypatch.setattr(fashion_scenes, "compose", fails_later)
    for task in ("segmentation", "detection"):
        calls.clear()
        command = ("make-data", "fashion-scenes", "--task", task, "--out", task, "--train", 2, "--val", 2)
        done = xcit(*command)
        assert (done.status, done.err) == (2, f"xcit: error: {task}: can't be written: No space left on device\n")
        assert not Path(task).exists()
        done = xcit(*command)
        assert (done.status, done.err) == (0, "")
        assert not list(Path(task).glob(".*"))


def test_results_go_through_links(xcit, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for option, name in (("--json", "a.json"), ("--csv", "a.csv")):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
        assert xcit("predict", "a.png", option, name).status == 0
        assert Path(name).is_symlink()
        assert (tmp_path / "real" / name).stat().st_size
    (tmp_path / "f.npz").symlink_to("real/f.npz")
    assert xcit("features", "a.png", "--out", "f.npz").status == 0
    assert Path("f.npz").is_symlink()
    assert list(np.load("real/f.npz")["files"]) == ["a.png"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
@pytest.mark.parametrize(
    "command", [("predict", "a.png", "--csv"), ("predict", "a.png", "--json"), ("features", "a.png", "--out")]
)
def test_a_device_stays_a_device(xcit, tmp_path: Path, command) -> None:
    """Creates a device node with the device numbers of /dev/null, in a folder where root could replace it by a file."""
    null = tmp_path / ("null.npz" if command[0] == "features" else "null")
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        null.write_text("")
    except OSError as error:
        pytest.skip(f"devices can't be made or used here: {error}")
    done = xcit(*command, null)
    assert (done.status, done.err) == (0, MODEL)
    assert stat.S_ISCHR(null.stat().st_mode)


def test_standard_output_by_its_name(start) -> None:
    """Rows that are written to `/dev/stdout` reach standard output."""
    done = start("-m", "xcit", "predict", "a.png", "--csv", "/dev/stdout").finish()
    assert (done.status, done.err) == (0, MODEL)
    rows = list(csv.reader(done.out.splitlines()))
    assert [row[0] for row in rows] == ["file", *["a.png"] * 5]


def test_an_interrupt_keeps_the_earlier_result_and_what_is_new(xcit, tmp_path: Path, monkeypatch) -> None:
    from xcit.inference import classify

    assert xcit("predict", "a.png", "--json", "a.json").status == 0
    before = Path("a.json").read_bytes()
    each = classify.predict_each

    def stopped(*arguments, **named):
        yield next(iter(each(*arguments, **named)))
        raise KeyboardInterrupt

    monkeypatch.setattr(classify, "predict_each", stopped)
    assert xcit("predict", "b.png", "a.png", "--json", "a.json").status == 130
    assert Path("a.json").read_bytes() == before
    assert [row["file"] for row in json.loads(Path("a.json.part").read_text())] == ["b.png"]
    assert xcit("predict", "b.png", "a.png", "--json", "new.json").status == 130
    assert [row["file"] for row in json.loads(Path("new.json").read_text())] == ["b.png"]
