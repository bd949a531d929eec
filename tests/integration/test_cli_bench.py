"""Tests `xcit bench` and `xcit complexity`: their output, their files, and their messages for wrong arguments."""

import json
import sys
from importlib.metadata import version

import pytest

import xcit as package

FEW = ("--rounds", 1, "--threads", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch):
    monkeypatch.setattr("xcit.measure.clock.CPU_SIDES", (64,))


def test_bench(xcit):
    done = xcit("bench", "nano-12-p16", *FEW, "--sizes", "32,64", "--batch-sizes", "1,3", "--no-memory")
    assert (done.status, done.err) == (0, "")
    machine, settings, *lines = done.out.splitlines()
    assert f"torch {version('torch')}" in machine
    assert settings.startswith("inference, float32, 1 round; matrix products reach ")
    assert lines[0].strip() == "nano-12-p16"
    assert lines[2].split() == ["px", "batch", "ms/image", "images/s"]
    rows = [line.split() for line in lines[4:] if line.strip()]
    assert [row[:2] for row in rows] == [[px, batch] for px in ("32", "64") for batch in ("1", "3")]
    assert all(float(row[2]) > 0 and float(row[3].replace(",", "")) > 0 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU is measured on Linux only")
def test_bench_of_a_file_with_memory_as_json(xcit, trained):
    model = trained[0] / "model.safetensors"
    done = xcit("bench", model, *FEW, "--sizes", 32, "--batch-sizes", 2, "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    (speed,) = report["speeds"]
    assert (report["model"], speed["image_size"], speed["batch_size"]) == (str(model), 32, 2)
    assert speed["peak_memory"] > 2 * 3 * 4 * 32
    assert len(speed["seconds"]) == 1


@pytest.mark.parametrize("name", ["sem-fpn_xcit-tiny-12-p16_80k_ade20k", "mask-rcnn_xcit-tiny-12-p16_3x_coco"])
def test_bench_of_other_kinds(xcit, name):
    done = xcit("bench", name, *FEW, "--sizes", 64, "--no-memory")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[2].strip() == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nano-12-p61", "no architecture or model is called 'nano-12-p61'; did you mean 'nano-12-p16'"),
        ("nano-12-p16 --sizes 8", "images are 8x8 pixels, smaller than one patch of 16x16"),
        ("nowhere.pth", "nowhere.pth: no such file"),
        ("nano-12-p16 --device cuda:99", "--device cuda:99: not on this machine"),
        ("mask-rcnn_xcit-tiny-12-p16 --dtype bfloat16", "a detector computes only in float32, not in bfloat16"),
    ],
)
def test_mistake_is_told_in_one_line(xcit, arguments, message):
    done = xcit("bench", "--device", "cpu", "--no-memory", *arguments.split())
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("verb", ["bench nano-12-p16", "complexity small-12-p8"])
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
    assert "inference, float32, batch 1, 10 rounds" in done.out
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
