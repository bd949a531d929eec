"""Tests the commands in docs/sharing.md, and their messages."""

import shutil
from pathlib import Path

import pytest
from hub_stand_in import hub_stand_in

from xcit.zoo import find_record
from xcit.zoo.load import packaged_path

PAGE = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text(encoding="utf-8")
PACKAGED = packaged_path(find_record("packaged"))


def block(heading: str) -> list[str]:
    """Returns the lines of the first code block below a heading of docs/sharing.md."""
    return PAGE.split(f"## {heading}\n")[1].split("\n```", 1)[1].split("\n```")[0].splitlines()[1:]


def test_adapters(xcit, colours: Path, small: list[str]) -> None:
    """Runs the commands of docs/sharing.md, but with another recipe, other fields and other data."""
    assert (
        xcit(
            "train",
            "xcit-pico-fashion-mnist",
            "--data",
            colours,
            *small,
            "--out",
            "first",
            "--device",
            "cpu",
            "--schedule.epochs",
            1,
        ).status
        == 0
    )
    train, predict, convert = (line.removeprefix("xcit ") for line in block("Low-rank adapters"))
    fields = [*small, "--initialize.weights", "first/model.safetensors", "--schedule.epochs", 6, "--device", "cpu"]
    words = train.replace("xcit-small-12-p16_transfer", "xcit-pico-fashion-mnist").replace("my-photos", str(colours))
    done = xcit(*words.split(), *fields, "--optimizer.lr", 0.01)
    assert done.status == 0, done.err
    assert "adapter: runs/birds/model-adapter\nbest adapter: runs/birds/best-adapter\n" in done.out
    assert done.out.endswith("use them: xcit predict IMAGE... --model runs/birds/model-adapter\n")
    shutil.copyfile(colours / "rot" / "0.png", "photo.jpg")
    found = xcit(*predict.split())
    assert found.status == 0 and "rot" in found.out
    assert xcit(*convert.split()).status == 0
    merged = xcit("predict", "photo.jpg", "--model", "birds.safetensors")
    assert merged.out == found.out
    assert xcit("info", "runs/birds/model-adapter").status == 0
    assert xcit("train", "runs/birds/config.yaml", "--resume").status == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("convert", "none.pth", "folder", "--to", "timm-hub"), "cannot read none.pth: no such file"),
        (("convert", PACKAGED, "full", "--to", "timm-hub"), "full already exists: choose another folder"),
        (("convert", PACKAGED, "folder", "--to", "timm-hub", "--report", "none.json"), "none.json: can't be read"),
        (
            ("convert", PACKAGED, "new.pth", "--to", "timm", "--licence", "mit"),
            "a licence and a report are only for the model card",
        ),
        (("predict", "a.png", "--model", "hf-hub:a/b/c"), "hf-hub:a/b/c is no repository of the Hub"),
        (("predict", "a.png", "--model", "hf-hub:a/b"), "hf-hub:a/b: not requested, because HF_HUB_OFFLINE is set"),
        (("predict", "a.png", "--model", "full"), "full is a folder, not a checkpoint"),
        (("info", "hf-hub:a/b"), "hf-hub:a/b: not requested, because HF_HUB_OFFLINE is set"),
        (
            ("train", "xcit-pico-fashion-mnist", "--data", "x", "--lora.rank", 2),
            "lora.rank adapts a trained model: set initialize.weights",
        ),
        (
            ("train", "xcit-pico-fashion-mnist", "--data", "x", "--lora.rang", 2),
            "no config field 'lora.rang'; did you mean 'lora.rank'?",
        ),
    ],
)
def test_mistakes_end_in_one_line(xcit, command: tuple[object, ...], message: str) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    done = xcit(*command)
    assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1
    assert {path.name for path in Path().iterdir()} <= {"full", ".cache"}


def test_the_hub(xcit, colours: Path, tmp_path: Path) -> None:
    """Runs the commands of docs/sharing.md, but with another recipe, other fields and other data."""
    with hub_stand_in(tmp_path) as hub:
        assert xcit("convert", PACKAGED, "birds", "--to", "timm-hub").status == 0
        hub.publish("USER/birds", Path("birds"))
        predict, train, convert = (line.removeprefix("xcit ") for line in block("The Hub"))
        shutil.copyfile(PACKAGED.parent / "images" / "bag.png", "photo.jpg")
        done = xcit(*predict.split())
        assert done.status == 0 and "Bag" in done.out
        words = train.replace("xcit-nano-12-p16_transfer", "xcit-pico-fashion-mnist").replace("my-photos", str(colours))
        fields = ("--model.num_classes", 0, "--holdout", 0, "--run.batch_size", 10, "--schedule.epochs", 1)
        done = xcit(*words.split(), *fields, "--schedule.warmup_epochs", 0, "--device", "cpu", "--run.ema_decay", 0)
        assert done.status == 0, done.err
        assert xcit(*convert.split()).status == 0 and Path("birds.pth").is_file()
        wrong = xcit("predict", "photo.jpg", "--model", "hf-hub:USER/cats")
        assert wrong.status == 2 and "the repository or revision does not exist" in wrong.err
