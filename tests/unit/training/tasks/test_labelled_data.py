"""Tests lists and streams of images: opening, division among processes, and use for validation."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xcit.data.loader import AugmentationConfig
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.training.engine.config import RunConfig
from xcit.training.engine.task import Layout
from xcit.training.tasks.classification import ClassificationConfig, ClassificationTask, evaluate_classification
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.labelled_data import num_images_of, open_data

SPEC = Preprocessing(image_size=8, resize_to=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLASSES = ("dark", "light")


def image(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value,) * 3)


def write_shards(folder: Path, values: Sequence[Sequence[int]]) -> str:
    """Writes a tar file per row of grey values, and classes.txt; images with values above 127 have class 1."""
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for number, row in enumerate(values):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for value in row:
                encoded = io.BytesIO()
                image(value).save(encoded, "PNG")
                for suffix, data in (("png", encoded.getvalue()), ("cls", str(int(value > 127)).encode())):
                    member = tarfile.TarInfo(f"{value:03}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"wds:{folder}/{{000..{len(values) - 1:03}}}.tar"


def write_folder(root: Path, values: Sequence[int]) -> str:
    for value in values:
        folder = root / CLASSES[value > 127]
        folder.mkdir(parents=True, exist_ok=True)
        image(value).save(folder / f"{value:03}.png")
    return str(root)


TRAIN = ((10, 20, 130, 140), (30, 40, 150, 160))
VAL = (50, 60, 170, 180, 190)


@pytest.fixture
def stream(tmp_path: Path) -> str:
    return write_shards(tmp_path / "shards", TRAIN)


def config_of(data: str, **changes: Any) -> ClassificationConfig:
    fields: dict[str, Any] = {
        "name": "shades",
        "model": XCiTConfig(patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=0),
        "preprocessing": SPEC,
        "data": data,
        "augmentation": AugmentationConfig(crop="padded", padding=0, flip=0),
        "run": RunConfig(batch_size=4, num_workers=0),
    }
    return ClassificationConfig(**(fields | changes))


def seen(task: ClassificationTask, epoch: int) -> list[int]:
    return [round(value * 255) for images, _ in task.train_batches(epoch) for value in images[:, 0, 0, 0].tolist()]


def test_a_stream_is_trained_on_and_a_folder_watched(stream: str, tmp_path: Path) -> None:
    task = ClassificationTask(config_of(stream, val_data=write_folder(tmp_path / "val", VAL), shuffle_buffer=3))
    assert task.config.model.num_classes == 2
    assert (task.num_steps, task.num_inputs) == (2, 8)
    assert sorted(seen(task, 0)) == sorted(TRAIN[0] + TRAIN[1])
    assert seen(task, 0) != seen(task, 1)
    for images, labels in task.train_batches(0):
        assert torch.equal(labels, (images[:, 0, 0, 0] > 0.5).long())
    assert set(task.evaluate(task.model)) == {"top1", "top5", "val_loss"}
    assert num_images_of(task.watched) == len(VAL)


def test_two_processes_share_a_stream(stream: str, tmp_path: Path) -> None:
    config = config_of(stream, val_data=write_folder(tmp_path / "val", VAL))
    shares = [seen(ClassificationTask(config, Layout(batch_size=4, rank=rank, world_size=2)), 0) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    assert sorted(shares[0] + shares[1]) == sorted(TRAIN[0] + TRAIN[1])


class Bright(nn.Module):
    """A model that predicts class 1 if the first pixel is above `threshold`."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        value = images[:, 0, 0, 0]
        return torch.stack([self.threshold - value, value - self.threshold], dim=1)


@pytest.mark.parametrize("make", [lambda root: write_shards(root, [VAL[:2], VAL[2:]]), lambda r: write_folder(r, VAL)])
def test_each_watched_image_counts_once_over_the_processes(
    stream: str, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    watched = open_data(stream, val_data=make(tmp_path / "val"), holdout=0, num_classes=0).watched
    model = Bright(175 / 255)  # wrong for the image of value 170
    alone = evaluate_classification(model, watched, SPEC, EvaluationConfig(batch_size=2), num_classes=2)
    assert (alone.num_images, alone.top1) == (5, 80.0)
    for world_size in (2, 3):  # two shards: a third process gets none
        # The first process needs the sums over all processes. They are computed here, process by process.
        parts: list[list[Tensor]] = []
        for rank in range(world_size):
            gathered: list[Tensor] = []

            def keep(tensor: Tensor, gathered: list[Tensor] = gathered) -> Tensor:
                gathered.append(tensor)
                return torch.ones_like(tensor)

            layout = Layout(batch_size=2, rank=rank, world_size=world_size)
            evaluate_classification(model, watched, SPEC, num_classes=2, layout=layout, reduce=keep)
            parts.append(gathered)
        totals = [sum(tensors, torch.zeros_like(tensors[0])) for tensors in zip(*parts, strict=True)]
        assert torch.equal(totals[1], alone.confusion)
        assert totals[0][1].item() / 5 == pytest.approx(alone.loss, rel=1e-6)


def test_val_data_is_watched_instead_of_the_data_s_own(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data" / "train", (10, 200))
    write_folder(tmp_path / "data" / "val", (30, 210))
    other = write_folder(tmp_path / "other", (50, 60, 220))
    root = str(Path(data).parent)
    for val_data, expected in (("", 2), (other, 3)):
        opened = open_data(root, val_data=val_data, holdout=0, num_classes=0)
        assert (num_images_of(opened.train), num_images_of(opened.watched)) == (2, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"000\.\.001}\.tar is a stream: set val_data to the validation images"),
        ({"holdout": 2}, "holdout is 2, but images can't be held out of a stream: set val_data"),
        ({"val_data": "no-such"}, "no-such: no such folder"),
        ({"val_data": "others"}, "others: the training and the validation images have different classes"),
        (
            {"val_data": "val", "augmentation": AugmentationConfig(num_repeats=3)},
            r"set augmentation\.num_repeats to 1",
        ),
    ],
)
def test_what_a_stream_can_t_do_is_said(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "val", VAL)
    (tmp_path / "others" / "red").mkdir(parents=True)
    image(3).save(tmp_path / "others" / "red" / "0.png")
    with pytest.raises(XCiTError, match=message):
        ClassificationTask(config_of(stream, **fields))
