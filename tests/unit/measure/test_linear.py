"""Tests `xcit.train_linear` on three colours: its results, its files, and resuming."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.errors import XCiTError
from xcit.inference.classify import predict
from xcit.measure.linear import LinearReport, train_linear
from xcit.models import XCiT
from xcit.training.engine.log import read_log
from xcit.training.engine.progress import Progress, Stopped
from xcit.training.tasks.labelled_features import feature_cache
from xcit.weights.files import read_checkpoint
from xcit.zoo import save_model

ARGUMENTS: dict[str, Any] = {"lrs": (10.0,), "epochs": 4, "batch_size": 6, "num_workers": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))


def train(model: Any, data: Path, directory: Path, **changes: Any) -> LinearReport:
    return train_linear(model, str(data), directory, **(ARGUMENTS | changes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "model.safetensors").state


@pytest.mark.parametrize("augmented", [True, False])
def test_measures_and_leaves_a_classifier(splits: Path, tiny: XCiT, tmp_path: Path, augmented: bool) -> None:
    announced: list[str] = []
    report = train(tiny, splits, tmp_path / "run", augmented=augmented, epochs=12, announce=announced.append)
    assert announced[:2] == [
        f"found 3 classes: blue, green, red; 18 images in {splits / 'train'}",
        f"validated on 9 images in {splits / 'val'}",
    ]
    assert announced[2:] == [
        "18 training images of 3 classes, features of 16 numbers; global batch 6, learning rate 0.234375"
    ]
    assert (report.num_val, report.unreadable) == (9, ())
    (accuracy,) = report.accuracies
    assert accuracy == report.best
    assert accuracy.top1 == 100 * accuracy.num_right1 / 9
    assert accuracy.num_right1 >= 7
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "best.pt",
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "last.pt",
        "log.jsonl",
        "model.safetensors",
    }
    epochs = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "epoch"]
    assert epochs[-1]["top1"] == accuracy.top1
    found = predict(sorted((splits / "val").rglob("*.png")), tmp_path / "run" / "model.safetensors", topk=1)
    right = [Path(one.source).parent.name == one.classes[0].name for one in found]
    assert sum(right) == accuracy.num_right1


def test_several_learning_rates_give_the_best_one_s_classifier(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    report = train(tiny, splits, tmp_path / "run", lrs=(1e-4, 10.0), augmented=False)
    assert [accuracy.lr for accuracy in report.accuracies] == [1e-4, 10.0]
    assert report.best.lr == 10.0
    alone = train(tiny, splits, tmp_path / "alone", augmented=False)
    assert alone.best.num_right1 == report.best.num_right1
    one, other = weights(tmp_path / "run"), weights(tmp_path / "alone")
    torch.testing.assert_close(one["head.weight"], other["head.weight"], rtol=1e-4, atol=1e-6)


def test_features_of_centre_crops_are_computed_once(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    counts: list[int] = []

    @contextmanager
    def extracting(num_images: int) -> Iterator[Callable[[int], None]]:
        counts.append(num_images)
        yield counts.append

    for name in ("one", "two"):
        train(tiny, splits, tmp_path / name, augmented=False, extracting=extracting)
    assert counts == [27, 9, 18, 27, 9, 18]
    assert len(list(feature_cache().iterdir())) == 2
    train(tiny, splits, tmp_path / "three", extracting=extracting)
    assert counts[6:] == [9, 9], "the validation images alone, and they are kept already"
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    train(tiny, splits, tmp_path / "four", augmented=False, cache=False)
    four = weights(tmp_path / "four")
    assert all(torch.equal(tensor, four[name]) for name, tensor in one.items())


@pytest.mark.parametrize("augmented", [True, False])
def test_a_stopped_run_goes_on_bit_for_bit(splits: Path, tiny: XCiT, tmp_path: Path, augmented: bool) -> None:
    train(tiny, splits, tmp_path / "whole", augmented=augmented)

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as caught:
        train(tiny, splits, tmp_path / "cut", augmented=augmented, report=stop)
    assert caught.value.checkpoint == tmp_path / "cut" / "last.pt"
    report = train(tiny, splits, tmp_path / "cut", augmented=augmented, resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    # Resuming a finished run only repeats the measurement.
    assert train(tiny, splits, tmp_path / "cut", augmented=augmented, resume=True) == report


def test_another_run_is_not_gone_on_with(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny, splits, run, augmented=False, resume=True)  # there is no run yet, so it begins
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(XCiTError, match="run already contains a run: resume it, or choose another folder"):
        train(tiny, splits, run, augmented=False)
    other = {"lrs": (1.0,), "epochs": 5, "augmented": True, "batch_size": 9, "class_weights": (1.0, 2.0, 1.0)}
    for name, value in other.items():
        with pytest.raises(XCiTError, match=rf"run contains another run: its {name} is .*; choose another folder"):
            train(tiny, splits, run, **({"augmented": False, "resume": True} | {name: value}))
    tiny.get_parameter("norm.bias").data += 1
    with pytest.raises(XCiTError, match="run contains another run: its backbone is"):
        train(tiny, splits, run, augmented=False, resume=True)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("augmented", [True, False])
def test_unreadable_images_are_named(splits: Path, tiny: XCiT, tmp_path: Path, augmented: bool) -> None:
    paths = [splits / "train" / "red" / "2.png", splits / "val" / "blue" / "0.png"]
    for path in paths:
        path.write_text("text")
    report = train(tiny, splits, tmp_path / "run", augmented=augmented)
    assert report.num_val == 8
    assert report.unreadable == tuple(f"{path}: not an image that can be read (it looks like text)" for path in paths)


def test_what_can_t_be_trained_is_told_in_one_line(splits: Path, tiny: XCiT, tmp_path: Path) -> None:
    def message(model: Any = tiny, data: Path = splits, **changes: Any) -> str:
        with pytest.raises(XCiTError) as caught:
            train(model, data, tmp_path / "run", **changes)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    assert message(batch_size=19) == (
        f"{splits} has 18 training images, fewer than a batch of 19: choose a smaller batch"
    )
    assert message(class_weights=(1.0, 2.0)) == "2 class_weights for 3 classes: give one for each"
    assert message(lrs=(-1.0,)) == "learning rates are -1.0, must all be above 0"
    assert message(data=tmp_path / "no").startswith(f"{tmp_path}/no: no such folder")
    assert message(data=splits / "train").startswith(f"{splits}/train has no folder val: expected train")
    assert message(model=tmp_path / "no.pth") == f"cannot read {tmp_path}/no.pth: no such file"
    tiny.info = None
    assert message(model=tiny).startswith("the model has no preprocessing")
    save_model(tiny, tmp_path / "bare.safetensors")
    assert message(model=tmp_path / "bare.safetensors").startswith(
        f"{tmp_path}/bare.safetensors: the file does not say how to prepare images"
    )


def test_a_run_is_shown_unless_somebody_else_hears_of_it(
    splits: Path, tiny: XCiT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train(tiny, splits, tmp_path / "shown", epochs=1, augmented=False)
    assert report.model == "tiny"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"linear probe of tiny: 1 epochs of centre crops; files in {tmp_path / 'shown'}"
    assert lines[1].startswith("found 3 classes: ") and lines[-1].startswith("epoch 1/1: loss ")
    train(tiny, splits, tmp_path / "heard", epochs=1, augmented=False, announce=lambda _: None)
    assert capsys.readouterr() == ("", "")
