"""Tests `xcit knn` and `xcit linear` as users type them, in one process and in two processes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.images.preprocess import DINO_PREPROCESSING, Preprocessing
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.weights.files import read_checkpoint
from xcit.zoo import ARCHITECTURES, get_model, save_model
from xcit.zoo.conversion import convert

# Since Python 3.12, there is a warning when a process with threads forks, as torch's data loader does.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

TINY = XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)
SPEC = Preprocessing(image_size=16, resize_to=16, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(autouse=True)
def _files(tmp_path, colours):
    """Writes `tiny.safetensors`, and `data` with seven training and three validation images of each class."""
    torch.manual_seed(0)
    model = XCiT(TINY).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.normal_(std=0.3)  # so large that features differ from image to image
    model.info = ModelInfo(name="tiny", preprocessing=SPEC)
    save_model(model, tmp_path / "tiny.safetensors")
    for folder in colours.iterdir():
        for index, path in enumerate(sorted(folder.iterdir())):
            place = tmp_path / "data" / ("train" if index < 7 else "val") / folder.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


FOUND = "found 3 classes: blau, grün, rot; 21 images in data/train\nvalidated on 9 images in data/val\n"
TINY_ANSWERED = "xcit: model tiny.safetensors\n"
KNN = ("knn", "tiny.safetensors", "--data", "data", "--device", "cpu")
LINEAR = ("linear", "tiny.safetensors", "--data", "data", "--device", "cpu", "--epochs", 4, "--batch-size", 6)


# knn


@forks
def test_knn(xcit):
    done = xcit(*KNN, "--k", 1, 5, "--workers", 1)
    assert (done.status, done.err) == (0, FOUND + TINY_ANSWERED)
    head, *lines = done.out.splitlines()
    assert head == "neighbours among 21 images, votes of exp(similarity / 0.07)"
    found = [
        re.fullmatch(r"k +(\d+) +top-1 +([\d.]+)% +top-5 +([\d.]+)% +\((\d+) and (\d+) of 9 images\)", line)
        for line in lines
    ]
    assert [match and match[1] for match in found] == ["1", "5"]
    for match in found:
        assert match is not None
        assert float(match[2]) == round(100 * int(match[4]) / 9, 2)
        assert float(match[3]) == round(100 * int(match[5]) / 9, 2)
        assert int(match[4]) >= 7
    kept = list(Path(".cache/features").iterdir())
    assert len(kept) == 2
    # The second run reads the cached features. The third run has --no-cache: it must not read the files, now wrong.
    assert xcit(*KNN, "--k", "1,5") == done
    for path in kept:
        path.write_bytes(b"")
    assert xcit(*KNN, "--k", 1, "--k", 1, 5, "--no-cache", "--workers", 0, "--batch-size", 4) == done
    assert [path.stat().st_size for path in kept] == [0, 0]


def test_knn_by_itself_takes_the_published_numbers_of_neighbours(xcit):
    done = xcit(*KNN, "--workers", 0, "--temperature", 0.5)
    assert [line.split()[:2] for line in done.out.splitlines()[1:]] == [["k", "10"], ["k", "20"]]
    assert "exp(similarity / 0.5)" in done.out


def test_knn_names_unreadable_images(xcit):
    Path("data/train/rot/0.png").write_text("text")
    Path("data/val/blau/9.png").write_bytes(b"")
    done = xcit(*KNN, "--workers", 0)
    assert done.status == 1
    assert done.err.startswith(FOUND)
    told = done.err.removeprefix(FOUND).splitlines()
    assert [line.split(":")[1] for line in told[:2]] == [
        " data/train/rot/0.png",
        " data/val/blau/9.png",
    ]
    assert told[2:] == [TINY_ANSWERED.rstrip(), "xcit: 2 images could not be read and were left out"]
    assert "among 20 images" in done.out
    assert "of 8 images" in done.out


def test_knn_of_a_dino_file_needs_no_name(xcit):
    # A small model with the shape of the packaged model, for RGB images: a published model would take long.
    model = XCiT(replace(ARCHITECTURES["pico-6-p4"], in_channels=3, num_classes=0))
    save_model(model, Path("pico.safetensors"))
    convert("pico.safetensors", "pico.pth", "dino")
    known: Any = get_model("pico.pth")
    assert known.info.preprocessing == DINO_PREPROCESSING
    done = xcit("knn", "pico.pth", "--data", "data", "--workers", 0, "--k", 3)
    assert done.status == 0
    assert done.err.startswith("xcit: pico.pth: the preprocessing is assumed: short side to 256, centre 224 x 224, ")
    assert done.err.count("\n") == 4
    assert done.err.endswith(f"{FOUND}xcit: model pico.pth\n")


def test_two_processes_find_the_neighbours_that_one_finds(xcit, start):
    (Path("data/train/rot/0.png")).write_text("text")  # an odd number of images in each split
    alone = xcit(*KNN, "--workers", 0, "--no-cache", "--k", 1, 3, 20)
    for _ in range(2):  # computed, then cached
        done = start("-m", "xcit", *KNN, "--workers", 0, "--k", 1, 3, 20, processes=2).finish()
        assert done.out == alone.out
        assert done.err.count("0.png: not an image") == 1
    assert len(list(Path(".cache/features").iterdir())) == 2


# linear


@pytest.mark.parametrize("options", [(), ("--no-augmentation",)])
def test_linear(xcit, options):
    done = xcit(*LINEAR, "--lr", 10, "--workers", 0, "--out", "run", *options)
    assert (done.status, done.err) == (0, TINY_ANSWERED)
    lines = done.out.splitlines()
    assert lines[1:3] == FOUND.splitlines()
    del lines[1:3]
    crops = "centre crops" if options else "random crops"
    assert lines[0] == f"linear probe of tiny: 4 epochs of {crops}; files in run"
    assert lines[1].startswith(
        "21 training images of 3 classes, features of 16 numbers; global batch 6, learning rate 0.2"
    )
    assert [line.split(":")[0] for line in lines[2:6]] == [f"epoch {epoch}/4" for epoch in range(1, 5)]
    match = re.fullmatch(r"lr 10 +top-1 +([\d.]+)% +top-5 100.00% +loss [\d.]+ +\((\d+) and 9 of 9 images\)", lines[6])
    assert match is not None
    assert float(match[1]) == round(100 * int(match[2]) / 9, 2)
    assert lines[7] == "use it: xcit predict IMAGE... --model run/model.safetensors"
    assert Path("run/curves.png").exists()
    # The exported classifier gives the same result for each image.
    rows = json.loads(xcit("predict", "data/val", "--model", "run/model.safetensors", "--json", "-").out)
    assert sum(Path(row["file"]).parent.name == row["classes"][0]["name"] for row in rows) == int(match[2])


def test_linear_with_several_learning_rates_says_which_is_kept(xcit):
    done = xcit(*LINEAR, "--lr", 1e-6, 10, "--workers", 0, "--no-augmentation")
    assert (done.status, done.err) == (0, TINY_ANSWERED)
    lines = done.out.splitlines()[-4:]
    assert [line.split()[:2] for line in lines[:2]] == [["lr", "1e-06"], ["lr", "10"]]
    assert lines[2:] == [
        "best learning rate, chosen on these images: 10",
        "use it: xcit predict IMAGE... --model runs/linear/tiny/model.safetensors",
    ]


def test_linear_goes_on(xcit):
    assert xcit(*LINEAR, "--workers", 0).status == 0
    refused = xcit(*LINEAR, "--workers", 0)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "runs/linear/tiny already contains a run: resume it, or choose another folder" in refused.err
    assert xcit(*LINEAR, "--workers", 0, "--resume").status == 0


@pytest.mark.parametrize("options", [(), ("--no-augmentation",)])
def test_two_processes_learn_what_one_learns(xcit, start, options):
    assert xcit(*LINEAR, "--lr", 10, "--workers", 0, "--out", "one", *options).status == 0
    done = start("-m", "xcit", *LINEAR, "--lr", 10, "--workers", 0, "--out", "two", *options, processes=2).finish()
    assert done.status == 0, done.err
    assert done.out.count("epoch 4/4") == 1
    one, two = (read_checkpoint(Path(run, "model.safetensors")).state for run in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    logs = [[json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] for run in ("one", "two")]
    figures = [[(line["top1"], line["top5"]) for line in log if line["kind"] == "epoch"] for log in logs]
    assert figures[0] == figures[1]


# mistakes


@pytest.mark.parametrize("verb", ["knn", "linear"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tiny.safetensors --data nowhere", "nowhere: no such folder"),
        ("tiny.safetensors --data empty", "empty has no folder val: expected train/<class>/<image> and val/"),
        ("tiny.safetensors --data half", "half has no folder val: expected train/<class>/<image> and val/<class>"),
        ("tiny.safetensors --data hollow", "hollow/train: no images by class"),
        ("tiny.safetensors --data wds:a.tar", "wds:a.tar: a stream can't be used here"),
        ("bare.safetensors --data data", "bare.safetensors: the file does not say how to prepare images; give the"),
        ("nowhere.pth --data data", "cannot read nowhere.pth: no such file"),
        ("dino_xcit-small-12-p61 --data data", "no model is called 'dino_xcit-small-12-p61'; did you mean 'dino_xcit-"),
        ("tiny.safetensors --data data --device cuda:99", "--device cuda:99: not on this machine"),
        ("dino_xcit-small-12-p16 --weights tiny.safetensors --data data", "patch_size is 8, the model's is 16"),
        (
            "patches.safetensors --data data --batch-size 6",
            "a model without pooling gives tokens, not one feature per image",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(xcit, verb, words, message):
    for folder in ("empty", "half/train/a", "hollow/train", "hollow/val"):
        Path(folder).mkdir(parents=True)
    shutil.copytree("data/train", "half/train", dirs_exist_ok=True)
    shutil.rmtree("half/train/a")
    model: Any = get_model("tiny.safetensors")
    info, model.info = model.info, None
    save_model(model, Path("bare.safetensors"))
    model.info = info
    model.reset_classifier(0, "none")
    save_model(model, Path("patches.safetensors"))
    done = xcit(verb, *words.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("xcit: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("knn tiny.safetensors --data data --k 0", "k is 0, but must be at least 1"),
        ("knn tiny.safetensors --data data --k 22", "k is 22, but there are only 21 training images"),
        ("knn tiny.safetensors --data data --temperature 0", "temperature is 0.0, but must be above 0"),
        (
            "linear tiny.safetensors --data data",
            "data has 21 training images, fewer than a batch of 1024: choose a smaller",
        ),
        ("linear tiny.safetensors --data data --lr 0", "learning rates are 0.0, must all be above 0"),
    ],
)
def test_a_mistake_of_one_verb(xcit, words, message):
    done = xcit(*words.split(), "--workers", 0)
    assert done.status == 2
    assert done.err.startswith("xcit: error: ")
    assert message in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("knn", "Error: Missing argument 'MODEL'."),
        ("knn tiny.safetensors", "Error: Missing option '--data'."),
        ("knn tiny.safetensors --data data --k many", "'many' is no list of whole numbers such as 1 2 or 1,2"),
        ("linear tiny.safetensors --data data --lr fast", "'fast' is no list of numbers such as 1 2 or 1,2"),
        ("linear tiny.safetensors --data data --epochs 0", "0 is not in the range x>=1"),
    ],
)
def test_usage(xcit, words, message):
    done = xcit(*words.split())
    assert (done.status, done.out) == (2, "")
    assert message in done.err
