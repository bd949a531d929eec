"""Tests `benchmarks/compare.py`: its output, its files, and its messages for wrong arguments."""

import io
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from beside_peers import BenchResult, markdown
from compare import command
from forked import Done
from PIL import Image

from xcit.cli import run

TINY = ("--models", "nano-12-p16", "--rounds", 1, "--threads", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch, tmp_path):
    monkeypatch.setattr("xcit.measure.clock.CPU_SIDES", (64,))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def compare(monkeypatch) -> Callable[..., Done]:
    def call(*arguments: object) -> Done:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("argv", ["compare.py", *map(str, arguments)]), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            with pytest.raises(SystemExit) as ended:
                run(command, "compare.py")
        return Done(int(ended.value.code), *(stream.buffer.getvalue().decode() for stream in (out, err)))

    return call


def test_comparison(compare):
    done = compare(*TINY, "--sizes", "32,64", "--against", "timm,xcit-plain", "--no-memory", "--out", "a/b")
    assert (done.status, done.err) == (0, "")
    machine, settings, *lines = done.out.splitlines()
    assert f"torch {version('torch')}, timm {version('timm')}" in machine
    assert settings.startswith("inference, float32, batch 1, 1 round; matrix products reach ")
    assert lines[0].strip() == "nano-12-p16"
    assert "xcit is faster by" in lines[2]
    rows = [line.split() for line in lines if line.strip().endswith(("e-07", "0e+00"))]
    assert [row[:3] for row in rows] == [
        [px, tokens, name] for px, tokens in (("32", "4"), ("64", "16")) for name in ("xcit", "timm", "xcit-plain")
    ]
    assert [line.split()[0] for line in lines if "time as tokens^" in line] == ["xcit:", "timm:", "xcit-plain:"]
    assert lines[-3:] == ["wrote  a/b/bench.json", "wrote  a/b/bench.md", "wrote  a/b/nano-12-p16.png"]

    result = BenchResult.from_json(Path("a/b/bench.json").read_text(encoding="utf-8"))
    assert result.contenders == ("xcit", "timm", "xcit-plain")
    assert Path("a/b/bench.md").read_text(encoding="utf-8") == markdown(result)
    with Image.open("a/b/nano-12-p16.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU is measured on Linux only")
def test_comparison_of_memory(compare):
    done = compare(*TINY, "--models", "packaged", "--sizes", 28, "--against", "", "--out", ".")
    assert (done.status, done.err) == (0, "")
    assert "peak MB/image" in done.out
    (size,) = BenchResult.from_json(Path("bench.json").read_text(encoding="utf-8")).models[0].sizes
    assert [measurement.contender for measurement in size.measurements] == ["xcit"]
    assert size.measurements[0].peak_memory > 0


def test_comparison_of_training(compare):
    done = compare(*TINY, "--sizes", 32, "--train", "--batch-size", 2, "--no-memory")
    assert (done.status, done.err) == (0, "")
    assert "training step (forward, loss, backward), float32, batch 2" in done.out
    assert "xcit-plain is faster by" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--against tim", "no contender is called 'tim'; did you mean 'timm'?"),
        ("--models nano-12-p61", "no architecture or model is called 'nano-12-p61'; did you mean 'nano-12-p16'"),
        ("--sizes 224,8", "images are 8x8 pixels, smaller than one patch of 16x16"),
        (
            "--train --against onnxruntime",
            "onnxruntime can't be trained; contenders for training: xcit-plain, xcit-compile, timm",
        ),
        ("--against onnxruntime --dtype bfloat16", "onnxruntime is measured in float32 on the CPU only"),
        ("--models packaged --sizes 28", "timm has no pico-6-p4: compare it with xcit-plain or xcit-compile"),
        ("--device cuda:99", "--device cuda:99: not on this machine"),
        ("--out file/results", "file/results: Not a directory"),
        ("--train --sizes 16", "nano-12-p16 can't be measured at 16 px: ValueError: Expected more than 1 value per"),
    ],
)
def test_mistake_is_told_in_one_line(compare, arguments, message):
    Path("file").touch()
    done = compare(*TINY, "--no-memory", *arguments.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("xcit: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
