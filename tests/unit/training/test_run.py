"""Tests the checks of `xcit train` before it loads data or weights, and its lines about the batch."""

import gc
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.config import override, read_yaml, save_yaml
from xcit.errors import XCiTError
from xcit.training.engine.task import Layout
from xcit.training.recipes import get_recipe
from xcit.training.run import check_run, describe_batch, describe_watching, train

PICO = get_recipe("xcit-pico-fashion-mnist")
NANO: Any = get_recipe("xcit-nano-12-p16_8xb128_in1k")


def test_a_new_folder_begins_a_new_run(tmp_path: Path) -> None:
    assert check_run(PICO, tmp_path / "run", None) is None
    assert check_run(PICO, tmp_path / "run", "auto") is None


@pytest.mark.parametrize("resume", ["auto", "folder", "file", "other"])
def test_a_run_is_found_again(tmp_path: Path, resume: str) -> None:
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).touch()
    save_yaml(PICO, tmp_path / "config.yaml")
    places: dict[str, str | Path] = {
        "auto": "auto",
        "folder": tmp_path,
        "file": tmp_path / "last.pt",
        "other": tmp_path / "best.pt",
    }
    expected = tmp_path / ("best.pt" if resume == "other" else "last.pt")
    assert check_run(PICO, tmp_path, places[resume]) == expected


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    with pytest.raises(XCiTError, match=r"already contains a run: resume it, or"):
        check_run(PICO, tmp_path, None)
    other = tmp_path / "other"
    other.mkdir()
    (other / "last.pt").touch()
    with pytest.raises(XCiTError, match=r"already contains another run, to which"):
        check_run(PICO, tmp_path, other)


@pytest.mark.parametrize("resume", ["nowhere.pt", "."])
def test_a_missing_checkpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(XCiTError, match="no such checkpoint to resume from"):
        check_run(PICO, tmp_path / "run", resume)


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    save_yaml(PICO, tmp_path / "config.yaml")
    with pytest.raises(XCiTError, match="belongs to another model: resume with"):
        check_run(replace(NANO, data="somewhere"), tmp_path, "auto")


def test_a_run_with_another_rule_of_decay_is_refused(tmp_path: Path) -> None:
    """The stopped run is from an old version, in which the recipe applied weight decay to the class token."""
    recipe = replace(get_recipe("xcit-nano-12-p16_official_in1k"), data="somewhere")
    before = override(recipe, {"optimizer.undecayed": "vectors"})
    (tmp_path / "last.pt").touch()
    save_yaml(before, tmp_path / "config.yaml")
    with pytest.raises(XCiTError) as caught:
        check_run(recipe, tmp_path, "auto")
    assert str(caught.value) == (
        f"{tmp_path / 'last.pt'} was trained with optimizer.undecayed vectors, not vectors_and_tokens: resume with "
        f"the config {tmp_path / 'config.yaml'}"
    )
    assert check_run(before, tmp_path, "auto") == tmp_path / "last.pt"


def test_a_run_begun_with_the_other_scale_of_soft_distillation_is_refused(tmp_path: Path) -> None:
    recipe = override(NANO, {"data": "x", "distillation.teacher": "xcit-nano-12-p8_3rdparty_in1k"})
    soft = override(recipe, {"distillation.kind": "soft"})
    (tmp_path / "last.pt").touch()
    for config in (soft, recipe):
        save_yaml(config, tmp_path / "config.yaml")
        assert check_run(config, tmp_path, "auto") == tmp_path / "last.pt"
        text = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(text.replace("  ema_warmup: false\n", ""))  # as older versions wrote it
        if config is soft:
            with pytest.raises(XCiTError, match="the loss of soft distillation was 1000 times as large"):
                check_run(config, tmp_path, "auto")
        else:
            assert check_run(config, tmp_path, "auto") == tmp_path / "last.pt"


def test_a_run_of_another_task_is_refused(tmp_path: Path) -> None:
    dino = get_recipe("dino_xcit-pico_fashion-mnist")
    (tmp_path / "last.pt").touch()
    save_yaml(dino, tmp_path / "config.yaml")
    assert check_run(dino, tmp_path, "auto") == tmp_path / "last.pt"
    with pytest.raises(XCiTError, match="belongs to another model: resume with"):
        check_run(PICO, tmp_path, "auto")


def test_a_run_without_labels_asks_for_no_classes(tmp_path: Path) -> None:
    with pytest.raises(XCiTError) as caught:
        check_run(get_recipe("dino_xcit-small-12-p16_in1k"), tmp_path, None)
    assert str(caught.value) == ("dino_xcit-small-12-p16_in1k has no data of its own: set data to a folder of images")


def test_data_are_asked_for_first(tmp_path: Path) -> None:
    with pytest.raises(
        XCiTError, match=r"^xcit-nano-12-p16_8xb128_in1k has no data of its own: set data to a folder of images by "
    ):
        check_run(NANO, tmp_path, None)


def test_the_batch_is_described() -> None:
    layout = Layout(batch_size=1024, world_size=2, accumulation=4)
    assert describe_batch(NANO, layout) == [
        "global batch 1024 = 2 processes x 4 parts x 128 images, learning rate 0.001"
    ]


def test_a_batch_far_from_the_recipe_s_is_warned_of() -> None:
    lines = describe_batch(NANO, Layout(batch_size=64))
    assert lines[0] == "global batch 64 = 1 process x 1 part x 64 images, learning rate 0.001"
    assert lines[1] == (
        "warning: the recipe has learning rate 0.001 for a global batch of 1024 images, but this run has a global "
        "batch of 64 images: the learning rate is not changed automatically; if it were scaled with the batch "
        "size, it would be 6.25e-05 (set it with optimizer.lr)"
    )
    assert len(describe_batch(NANO, Layout(batch_size=768))) == 1


def test_being_watched_by_the_training_images_is_warned_of(tmp_path: Path) -> None:
    assert not describe_watching(PICO)
    (warning,) = describe_watching(replace(NANO, data=str(tmp_path)))
    assert warning.startswith(f"warning: {tmp_path} has no folder val")
    assert not describe_watching(replace(NANO, data=str(tmp_path), holdout=3))
    assert not describe_watching(replace(get_recipe("dino_xcit-small-12-p16_in1k"), data=str(tmp_path)))
    (tmp_path / "val").mkdir()
    assert not describe_watching(replace(NANO, data=str(tmp_path)))


def test_the_learning_rate_is_never_changed_in_silence() -> None:

    changed = override(NANO, {"run.batch_size": "64"})
    assert changed.optimizer == NANO.optimizer


def test_no_process_that_reads_outlives_a_run(splits: Path, tmp_path: Path) -> None:
    """Workers must end even if their loader is in a reference cycle: Python's exit would wait for them and fail."""
    changes = {
        "model.in_channels": "3", "preprocessing.mean": "0.5,0.5,0.5", "preprocessing.std": "0.5,0.5,0.5",
        "model.num_classes": "3", "model.depth": "1", "holdout": "0", "schedule.epochs": "1",
        "schedule.warmup_epochs": "0", "run.batch_size": "6", "run.num_workers": "2", "run.evaluate_every": "1",
    }  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        train(override(PICO, changes | {"data": str(splits)}), tmp_path / "run", device="cpu")
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_fields_of_python_are_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match=r"^no config field 'schedule\.epoch'; did you mean 'schedule\.epochs'\?$"):
        train("xcit-pico-fashion-mnist", tmp_path / "run", fields={"schedule": {"epoch": 3}})
    with pytest.raises(XCiTError, match=r"^run\.seed must be of type int, not 'one'$"):
        train(PICO, tmp_path / "run", fields={"run.seed": "one"})
    with pytest.raises(XCiTError, match=r"^device gpu: not on this machine"):
        train(PICO, tmp_path / "run", fields={"data": tmp_path}, device="gpu")
    assert not (tmp_path / "run").exists()


def test_mistakes_are_told_in_words_of_python(tmp_path: Path) -> None:
    """If `train` is called from Python, its errors must not mention options of the command line."""
    (tmp_path / "last.pt").touch()
    for recipe in ("xcit-nano-12-p16_transfer", "dino_xcit-small-12-p16_in1k", "sem-fpn_xcit-tiny-12-p16_80k_ade20k"):
        for fields in ({}, {"data": "nowhere"}):
            with pytest.raises(XCiTError) as caught:
                train(recipe, tmp_path, fields=fields)
            assert "--" not in str(caught.value)


@pytest.mark.parametrize("shown", [True, False])
def test_a_run_is_shown_unless_it_is_reported_otherwise(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(4):
            pixels = draw.integers(0, 100, (28, 28), dtype=np.uint8) + 150 * (name == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{index}.png")
    fields = {
        "data": tmp_path / "data",
        "holdout": 2,
        "model": {"num_classes": 0, "depth": 1, "embed_dim": 16, "num_heads": 2, "cls_depth": 1},
        "schedule": {"epochs": 2, "warmup_epochs": 0},
        "run": {"batch_size": 2, "num_workers": 0, "ema_decay": 0, "evaluate_every": 1},
        "initialize.weights": None,
    }
    lines: list[str] = []
    announce = None if shown else lines.append
    figures = train("xcit-pico-fashion-mnist", tmp_path / "run", fields=fields, device="cpu", announce=announce)
    assert set(figures) == {"top1", "top5", "val_loss"}
    printed = capsys.readouterr()
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert read_yaml(tmp_path / "run" / "config.yaml")["schedule"]["epochs"] == 2
    if not shown:
        assert (printed.out, printed.err) == ("", "")
        assert lines[0] == f"found 2 classes: dark, light; 8 images in {tmp_path / 'data'}"
        assert any(line.startswith("global batch 2 = 1 process x 1 part x 2 images") for line in lines[:3])
        return
    heading, found, *batch, first, last = printed.out.splitlines()
    assert heading == f"xcit-pico-fashion-mnist: 2 epochs of {tmp_path / 'data'} on cpu; files in {tmp_path / 'run'}"
    assert found == f"found 2 classes: dark, light; 8 images in {tmp_path / 'data'}"
    assert any(line.startswith("global batch 2 = 1 process x 1 part x 2 images") for line in batch)
    assert first.startswith("epoch 1/2: loss ") and last.startswith("epoch 2/2: loss ")
    assert f"top1 {figures['top1']:.3f}" in last
