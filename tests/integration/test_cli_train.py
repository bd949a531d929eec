"""Tests `xcit train` and `xcit config`: their output and files, and runs that are stopped and resumed."""

import json
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from xcit.training.recipes import RECIPES
from xcit.weights.files import read_checkpoint

NANO = "xcit-nano-12-p16_8xb128_in1k"
PICO = "xcit-pico-fashion-mnist"
DINO = "dino_xcit-pico_fashion-mnist"


@contextmanager
def interrupted_at(file: Path) -> Iterator[None]:
    """Sends Ctrl-C as soon as a file exists."""
    ends = threading.Event()

    def watch() -> None:
        while not ends.wait(0.01):
            if file.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ends.set()
        watcher.join()


def log_of(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["kind"] == kind]


def beginnings(printed: str) -> list[str]:
    return [line.split(":")[0] for line in printed.splitlines()]


# config


def test_config_with_overrides(xcit):
    plain = yaml.safe_load(xcit("config", f"configs/xcit/{NANO}.py").out)
    changes = ("--optimizer.lr", "2e-3", "--augmentation.scale=0.5,1", "--run.dtype", "bfloat16", "--data", "pictures")
    changed = yaml.safe_load(xcit("config", NANO, *changes).out)
    assert (plain["name"], plain["run"]["batch_size"]) == (NANO, 1024)
    plain["optimizer"]["lr"], plain["augmentation"]["scale"] = 0.002, [0.5, 1.0]
    plain["run"]["dtype"], plain["data"] = "bfloat16", "pictures"
    assert changed == plain


def test_config_of_a_run(xcit, trained):
    done = xcit("config", trained[0] / "config.yaml", "--schedule.epochs", 3)
    expected = yaml.safe_load((trained[0] / "config.yaml").read_text(encoding="utf-8"))
    expected["schedule"]["epochs"] = 3
    assert yaml.safe_load(done.out) == expected


def test_config_without_a_recipe_lists_them(xcit):
    done = xcit("config")
    lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert [line.split()[0] for line in lines] == [*RECIPES]
    assert all(len(line.split()) > 3 for line in lines), "each says what it is"
    assert not any("partial" in line for line in lines)


# train


def test_train_prints_where_it_is_and_what_came_of_it(trained, colours):
    run, done = trained
    assert (done.status, done.err) == (0, "")
    heading, *lines = done.out.splitlines()
    assert heading == f"{PICO}: 12 epochs of {colours} on cpu; files in {run}"
    assert lines[0] == f"found 3 classes: blau, grün, rot; 30 images in {colours}"
    assert any("learning rate 0.01" in line for line in lines[1:3])
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert beginnings("\n".join(epochs)) == [f"epoch {number}/12" for number in range(1, 13)]
    last = log_of(run, "epoch")[-1]
    figures = f"top1 {last['top1']:.3f}, top5 100.000, val_loss {last['val_loss']:.3f}"
    for line in epochs:
        assert "% waiting for data" in line
        assert ("left" in line) == (line != epochs[-1])
    assert figures in epochs[-1]
    assert lines[-5:] == [
        f"figures: {figures}",
        f"weights: {run / 'model.safetensors'}",
        f"best weights: {run / 'best.safetensors'}",
        f"curves: {run / 'curves.png'}",
        f"use them: xcit predict IMAGE... --model {run / 'model.safetensors'}",
    ]


def test_train_writes_config_log_curves_checkpoints_and_weights(trained, colours):
    run, _ = trained
    checkpoints, weights = {"last.pt", "best.pt"}, {"model.safetensors", "best.safetensors"}
    assert {path.name for path in run.iterdir()} == {"config.yaml", "log.jsonl", "curves.png", *checkpoints, *weights}
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["model"]["depth"], config["preprocessing"]["std"]) == (1, [0.25] * 3)
    assert config["data"] == str(colours)
    epochs = log_of(run, "epoch")
    assert [line["epoch"] for line in epochs] == [*range(1, 13)]
    assert epochs[-1]["top1"] > 90
    with Image.open(run / "curves.png") as picture:
        assert min(picture.size) > 300


def test_weights_are_used_as_the_last_line_says(xcit, trained, colours):
    command = trained[1].out.splitlines()[-1].removeprefix("use them: ").replace("IMAGE...", str(colours))
    done = xcit(*shlex.split(command)[1:], "--topk", 1)
    assert done.status == 0
    assert done.out.count("rot") > 10


def test_folder_of_the_run_is_named_for_the_recipe(xcit, colours, small):
    done = xcit("train", PICO, "--data", colours, *small, "--schedule.epochs", 1, "--run.max_device_batch", 3)
    assert (done.status, done.err) == (0, "")
    assert (Path("runs") / PICO / "model.safetensors").exists()


def test_ctrl_c_saves_and_the_printed_command_goes_on_to_the_same_weights(xcit, trained):
    with interrupted_at(Path("cut run/log.jsonl")):
        done = xcit("train", trained[0] / "config.yaml", "--out", "cut run", "--device", "cpu", "--run.log_every", 1)
    assert done.status == 75
    saved, _, command = done.err.rstrip("\n").partition("; resume with: ")
    assert saved == "xcit: stopped by SIGINT, saved in cut run/last.pt"
    assert command == "xcit train 'cut run/config.yaml' --resume --device cpu"
    assert not Path("cut run/model.safetensors").exists()
    assert Path("cut run/curves.png").exists()

    again = xcit(*shlex.split(command)[1:])
    assert (again.status, again.err) == (0, "")
    whole, cut = (read_checkpoint(run / "model.safetensors").state for run in (trained[0], Path("cut run")))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert [line["step"] for line in log_of(Path("cut run"), "step")] == [*range(1, 73)]
    assert [line["loss"] for line in log_of(Path("cut run"), "epoch")] == pytest.approx(
        [line["loss"] for line in log_of(trained[0], "epoch")]
    )


def test_resume_with_more_epochs_in_the_folder_of_the_config(xcit, trained):
    shutil.copytree(trained[0], "run")
    done = xcit("train", "run/config.yaml", "--resume", "--schedule.epochs", 14)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0].endswith("files in run")
    # Only the evaluation of the last finished epoch may be repeated, not its training.
    assert [begin for begin in beginnings(done.out) if begin.startswith("epoch ")][-2:] == [
        "epoch 13/14",
        "epoch 14/14",
    ]
    assert "epoch 11/14" not in beginnings(done.out)
    assert [line["epoch"] for line in log_of(Path("run"), "epoch")] == [*range(1, 15)]


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "auto"], ["--resume=auto"]])
def test_resume_begins_where_there_is_nothing_to_resume(xcit, trained, resume):
    done = xcit("train", trained[0] / "config.yaml", *resume, "--out", "new", "--schedule.epochs", 1)
    assert (done.status, done.err) == (0, "")
    assert "epoch 1/1" in beginnings(done.out)


@pytest.mark.parametrize("name", ["last.pt", ""])
def test_resume_from_a_path(xcit, trained, name):
    shutil.copytree(trained[0], "run")
    done = xcit("train", "run/config.yaml", "--resume", Path("run") / name, "--schedule.epochs", 13)
    assert (done.status, done.err) == (0, "")
    assert [begin for begin in beginnings(done.out) if begin.startswith("epoch ")][-1] == "epoch 13/13"
    assert "epoch 11/13" not in beginnings(done.out)


def test_unreadable_images_are_skipped_named_and_kept_in_a_list(xcit, trained, colours):
    shutil.copytree(colours, "data")
    Path("data/rot/3.png").write_text("text")
    fields = ("--data", "data", "--out", "a", "--schedule.epochs", 1, "--run.max_unreadable", 0.1)
    done = xcit("train", trained[0] / "config.yaml", *fields)
    reason = "data/rot/3.png: not an image that can be read (it looks like text)"
    assert (done.status, done.err) == (0, "")
    assert reason in done.out
    assert Path("a/unreadable.txt").read_text(encoding="utf-8") == f"{reason}\n"


@pytest.mark.parametrize(
    "mistake",
    [["--optimizer.lrr", "1"], ["--data", "nowhere"], ["--out", "."], ["--device", "cuda:99"], ["--resume", "no.pt"]],
    ids=" ".join,
)
def test_a_mistake_is_told_before_anything_else(xcit, trained, mistake, tmp_path):
    (tmp_path / "last.pt").touch()
    done = xcit("train", trained[0] / "config.yaml", "--out", "new", *mistake)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


# training without labels (DINO)


@pytest.fixture(scope="module")
def dino_fields(colours):
    fields = {
        "data": colours,
        "model.embed_dim": 16,
        "model.depth": 1,
        "head.out_dim": 32,
        "head.hidden_dim": 16,
        "head.bottleneck_dim": 8,
        "num_watched": 10,
        "schedule.epochs": 2,
        "schedule.warmup_steps": 0,
        "run.batch_size": 10,
        "run.num_workers": 0,
        "run.log_every": 1,
    }
    return ["--device", "cpu", *(word for name, value in fields.items() for word in (f"--{name}", value))]


def test_dino_trains_is_resumed_and_gives_features(xcit, colours, dino_fields):
    done = xcit("train", DINO, "--out", "run", *dino_fields)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"{DINO}: 2 epochs of {colours} on cpu; files in run"
    last = log_of(Path("run"), "epoch")[-1]
    figures = f"feature_spread {last['feature_spread']:.3f}, teacher_entropy {last['teacher_entropy']:.3f}"
    assert figures in lines[-5]
    assert lines[-4:] == [
        f"figures: {figures}",
        "weights: run/model.safetensors",
        "curves: run/curves.png",
        "use them: xcit features IMAGE... --model run/model.safetensors --out features.npz",
    ]
    assert len(log_of(Path("run"), "step")) == 6
    command = shlex.split(lines[-1].removeprefix("use them: ").replace("IMAGE...", str(colours / "rot")))
    assert xcit(*command[1:]).out.startswith("features.npz: 10 images; ")
    assert "has no classifier" in xcit("predict", colours / "rot", "--model", "run/model.safetensors").err

    more = xcit("train", "run/config.yaml", "--resume", "--schedule.epochs", 3)
    assert (more.status, more.err) == (0, "")
    assert [begin for begin in beginnings(more.out) if begin.startswith("epoch ")][-1] == "epoch 3/3"
    assert xcit("config", "run/config.yaml").out.startswith(f"name: {DINO}\ntask: dino\n")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["--crops.local_size", 3], "crops.local_size is 3, smaller than one patch of 8x8"),
        (["--model.num_classes", 10], "DINO needs a backbone without a classifier: set model.num_classes to 0, not 10"),
        (["--data", "empty"], "empty: a folder without images"),
        (["--optimizer.clip_mode", "some"], "optimizer.clip_mode must be one of all, each, not 'some'"),
        (["--augmentation.flip", 1], "no config field 'augmentation.flip'; did you mean 'crops.flip'?"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_dino_mistake_is_one_line(xcit, dino_fields, fields, told):
    Path("empty").mkdir()
    done = xcit("train", DINO, "--out", "run", *dino_fields, *fields)
    assert (done.status, done.out, done.err) == (2, "", f"xcit: error: {told}\n")


def test_a_dino_recipe_has_no_top1(xcit, colours, trained):
    done = xcit("test", DINO, trained[0] / "model.safetensors", "--data", colours)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "trains no classifier" in done.err


# mistakes with several processes


@pytest.mark.parametrize("mistake", [["--optimizer.lrr", 1], ["--outt", "a"], ["stray"]])
def test_of_several_processes_the_first_alone_tells_a_mistake(xcit, monkeypatch, tmp_path, mistake):
    note = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(note))
    told = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = xcit("train", PICO, *mistake)
        assert (done.status, done.out) == (2, "")
        told.append(done.err)
        message = json.loads(note.read_text(encoding="utf-8"))["message"]["message"]
        assert message.partition(": ")[2] in told[0], "torchrun's summary has it from any of them"
        note.unlink()
    assert told[1] == ""
