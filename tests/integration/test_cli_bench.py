"""`xcit bench` and `xcit complexity`: what is printed and written, and mistakes."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

import xcit as package
from xcit.bench import BenchResult, markdown

TINY = ("--models", "nano-12-p16", "--rounds", 1, "--threads", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch):
    monkeypatch.setattr("xcit.bench.measuring.CPU_SIDES", (64,))


def test_bench(xcit):
    done = xcit("bench", *TINY, "--sizes", "32,64", "--against", "timm,xcit-plain", "--no-memory", "--out", "a/b")
    assert (done.status, done.err) == (0, "")
    machine, settings, *lines = done.out.splitlines()
    assert f"torch {version('torch')}, timm {version('timm')}" in machine
    assert settings.startswith("inference, float32, batch 1, 1 round in turn; peak of matrix products ")
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
def test_bench_of_memory(xcit):
    done = xcit("bench", *TINY, "--models", "packaged", "--sizes", 28, "--against", "", "--out", ".")
    assert (done.status, done.err) == (0, "")
    assert "peak MB/image" in done.out
    (size,) = BenchResult.from_json(Path("bench.json").read_text(encoding="utf-8")).models[0].sizes
    assert [measurement.contender for measurement in size.measurements] == ["xcit"]
    assert size.measurements[0].peak_memory > 0


def test_bench_of_training(xcit):
    done = xcit("bench", *TINY, "--sizes", 32, "--train", "--batch-size", 2, "--no-memory")
    assert (done.status, done.err) == (0, "")
    assert "training step (forward, loss, backward), float32, batch 2" in done.out
    assert "xcit-plain is faster by" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--against tim", "no contender is called 'tim'; did you mean 'timm'?"),
        ("--models nano-12-p61", "no architecture or model is called 'nano-12-p61'; did you mean 'nano-12-p16'"),
        ("--sizes 224,8", "images are 8x8 pixels, smaller than one patch of 16x16"),
        ("--train --against onnxruntime", "onnxruntime does not train; what does: xcit-plain, xcit-compile, timm"),
        ("--against onnxruntime --dtype bfloat16", "onnxruntime is measured in float32 on the CPU only"),
        ("--models packaged --sizes 28", "timm has no pico-6-p4: measure it beside xcit-plain or xcit-compile"),
        ("--device cuda:99", "--device cuda:99: not on this machine"),
        ("--out file/results", "file/results: Not a directory"),
        ("--train --sizes 16", "nano-12-p16 can't be measured at 16 px: ValueError: Expected more than 1 value per"),
    ],
)
def test_mistake_is_told_in_one_line(xcit, arguments, message):
    Path("file").touch()
    done = xcit("bench", *TINY, "--no-memory", *arguments.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("xcit: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["bench", "complexity small-12-p8"])
@pytest.mark.parametrize("sizes", ["", "224;384", "0", "224,-1"])
def test_sizes_that_are_none(xcit, verb, sizes):
    done = xcit(*verb.split(), "--sizes", sizes)
    assert (done.status, done.out) == (2, "")
    assert f"{sizes!r} is no list of image sizes such as 224 or 224,384,1024" in done.err


def test_complexity(xcit):
    done = xcit("complexity", "xcit_small_12_p8", "--sizes", "224,384")
    assert (done.status, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert lines[0] == ["small-12-p8,", "26,213,032", "parameters"]
    assert lines[1] == ["px", "tokens", "FLOPs", "torch", "FLOPs"]
    counts = package.complexity(package.find_checkpoint("xcit_small_12_p8").config, 384)
    assert ["384", "2,304", f"{counts.flops:,}", f"{counts.torch_flops:,}"] in lines
    assert lines[-1][:2] == ["exponent", "1.000"]


def test_complexity_beside_a_measurement(xcit):
    arguments = ("complexity", "packaged", "--sizes", "28,56", "--measure", "--threads", 1, "--device", "cpu")
    done = xcit(*arguments)
    assert (done.status, done.err) == (0, "")
    assert "inference, float32, batch 1, 10 rounds in turn" in done.out
    assert "ms/image" in done.out
    content = json.loads(xcit(*arguments, "--json").out)
    assert (content["name"], content["params"]) == ("pico-6-p4", 434_434)
    assert [row["num_tokens"] for row in content["sizes"]] == [49, 196]
    assert all(row["milliseconds"] > 0 for row in content["sizes"])
    assert content["exponents"].keys() == {"flops", "torch_flops", "milliseconds"}


def test_complexity_of_one_size_has_no_exponent(xcit):
    done = xcit("complexity", "nano-12-p16", "--sizes", 224)
    assert "exponent" not in done.out
    assert json.loads(xcit("complexity", "nano-12-p16", "--sizes", 224, "--json").out)["exponents"]["flops"] is None


def test_complexity_of_a_mistake(xcit):
    done = xcit("complexity", "resnet")
    assert done.status == 2
    assert done.err.startswith("xcit: error: no architecture or model is called 'resnet'; ")
