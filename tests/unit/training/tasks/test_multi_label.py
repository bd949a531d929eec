"""Tests multi-label classification: average precision against scikit-learn, and runs up to `xcit.predict`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import xcit
from xcit.config import override, save_yaml
from xcit.data.loader import AugmentationConfig
from xcit.data.multi_label import open_multi_label
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models import XCiTConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.engine.task import Layout
from xcit.training.recipes import get_recipe
from xcit.training.run import describe_watching, train
from xcit.training.tasks.evaluation import EvaluationConfig
from xcit.training.tasks.multi_label import MultiLabelConfig, MultiLabelTask, average_precision_of, evaluate_multi_label
from xcit.zoo import get_model

SPEC = Preprocessing(image_size=16, resize_to=16, mean=(0.4,) * 3, std=(0.3,) * 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Writes pictures with any combination of a red, a green and a blue stripe."""
    folder, draw = tmp_path / "stripes", np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 40), ("val", 16)):
        lines = ["image,red,green,blue"]
        for index in range(count):
            bits = [index >> channel & 1 for channel in range(3)]
            pixels = draw.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            for channel, bit in enumerate(bits):
                pixels[5 * channel : 5 * channel + 5, :, channel] += 180 * bit
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{index}.png")
            lines.append(f"{split}-{index}.png,{','.join(map(str, bits))}")
        (folder / f"{split}.csv").write_text("\n".join(lines))
    return folder


def config_of(data: Path, **changes: Any) -> MultiLabelConfig:
    fields: dict[str, Any] = {
        "name": "stripes",
        "model": XCiTConfig(patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0),
        "preprocessing": SPEC,
        "data": str(data),
        "augmentation": AugmentationConfig(crop="padded", padding=1, flip=0.5),
        "optimizer": OptimizerConfig(lr=3e-3),
        "schedule": ScheduleConfig(epochs=30, warmup_epochs=1),
        "run": RunConfig(batch_size=8, num_workers=0, evaluate_every=30),
    }
    return MultiLabelConfig(**fields | changes)


@pytest.mark.parametrize("num_values", [3, 1000])
def test_average_precision_is_scikit_learn_s_with_equal_scores_too(num_values: int) -> None:
    draw = np.random.default_rng(num_values)
    for share in (0.03, 0.5, 1.0):
        targets = (draw.uniform(size=200) < share).astype(np.uint8)
        targets[7] = 1
        scores = draw.integers(0, num_values, 200).astype(np.float32) + targets * draw.integers(0, 2, 200)
        found = average_precision_of(torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(targets))
        assert found == pytest.approx(average_precision_score(targets, scores), rel=1e-12)


def test_a_class_without_images_has_no_average_precision() -> None:
    assert math.isnan(average_precision_of(torch.rand(5), torch.zeros(5)))


class Constant(nn.Module):
    """A model that returns the stored logits of each image, which it recognises by the colour."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        rows = ((images[:, 0, 0, 0] * SPEC.std[0] + SPEC.mean[0]) * 255).round().long()
        return self.logits[rows]


def test_several_processes_measure_each_image_once_and_leave_out_what_can_t_be_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    targets, logits = draw.integers(0, 2, (11, 3)), draw.normal(size=(11, 3)).astype(np.float32)
    targets[:, 2] = 0
    lines = ["image,a,b,c"]
    for index in range(11):
        Image.new("RGB", (16, 16), (index,) * 3).save(tmp_path / f"{index}.png")
        lines.append(f"{index}.png,{','.join(map(str, targets[index]))}")
    (tmp_path / "4.png").write_text("no picture")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    images = open_multi_label(str(tmp_path / "list.csv"), "val")
    model, kept = Constant(torch.from_numpy(logits)), [row for row in range(11) if row != 4]

    def measure(**more: Any) -> Any:
        return evaluate_multi_label(model, images, images.targets, SPEC, EvaluationConfig(batch_size=3), **more)

    report = measure()
    assert (report.num_images, len(report.unreadable)) == (10, 1)
    precision = [100 * average_precision_score(targets[kept, c], logits[kept, c]) for c in range(2)]
    assert report.average_precision[:2] == pytest.approx(precision)
    assert math.isnan(report.average_precision[2])
    shares = 1 / (1 + np.exp(-logits[kept].astype(np.float64)))
    loss = -np.where(targets[kept] == 1, np.log(shares), np.log(1 - shares)).mean()
    assert report.figures() == pytest.approx({"mAP": np.mean(precision), "val_loss": loss})

    # Two processes: first the sums of each process, then the figures from the total.
    given = list[list[Tensor]]()
    for rank in range(2):
        own = list[Tensor]()

        def note(tensor: Tensor, own: list[Tensor] = own) -> Tensor:
            own.append(tensor)
            return tensor

        measure(layout=Layout(batch_size=2, rank=rank, world_size=2), reduce=note)
        given.append(own)
    sums = iter(one + other for one, other in zip(*given, strict=True))
    assert measure(layout=Layout(batch_size=2, rank=0, world_size=2), reduce=lambda _: next(sums)).figures() == (
        report.figures()
    )


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("no picture")
    (tmp_path / "list.csv").write_text("image,labels\n0.png,a\n")
    images = open_multi_label(str(tmp_path / "list.csv"), "val")
    with pytest.raises(XCiTError, match="none of the 1 images could be read; the first: "):
        evaluate_multi_label(Constant(torch.zeros(1, 1)), images, images.targets, SPEC)


def test_a_run_learns_is_measured_and_predicts_each_class_on_its_own(root: Path, tmp_path: Path) -> None:
    figures = train(config_of(root), tmp_path / "run", device="cpu")
    assert figures["mAP"] > 90
    weights = tmp_path / "run" / "model.safetensors"
    model: Any = get_model(weights)
    assert model.info.is_multi_label
    assert model.info.class_names == ("red", "green", "blue")
    image = root / "val-7.png"  # all three
    (prediction,) = xcit.predict(image, model)
    from xcit.images.preprocess import preprocess
    from xcit.images.read import read_image

    with torch.inference_mode():
        expected = model.eval()(preprocess(read_image(image), SPEC)[None])[0].sigmoid()
    assert {scored.name: scored.score for scored in prediction.classes} == pytest.approx(
        dict(zip(("red", "green", "blue"), expected.tolist(), strict=True)), abs=1e-5
    )
    assert sum(scored.score for scored in prediction.classes) > 1.5

    result = xcit.test(str(tmp_path / "run" / "config.yaml"), weights, str(root), device="cpu")
    assert result.report.figures() == pytest.approx(figures, rel=1e-4)
    assert result.lines()[0] == f"mAP    {figures['mAP']:.2f}%"
    paths = result.write(tmp_path / "report", config="c", checkpoint="w", data="d")
    assert (tmp_path / "report" / "average_precision.csv").read_text().startswith("class,AP\n")
    assert len(paths) == 2
    (root / "val.csv").write_text("image,labels\nval-0.png,violet\n")
    with pytest.raises(XCiTError, match="'violet' is not among the"):
        xcit.test(str(tmp_path / "run" / "config.yaml"), weights, str(root), device="cpu")
    model.reset_classifier(2)
    assert not model.info.is_multi_label


def test_a_holdout_is_neither_trained_on_nor_the_rest_measured(root: Path) -> None:
    (root / "val.csv").unlink()
    config = config_of(root, holdout=8)
    assert describe_watching(config_of(root))[0].endswith("set holdout to hold out images for validation")
    assert not describe_watching(config)
    task = MultiLabelTask(config)
    images, targets = task._watched
    watched = {images[index][1] for index in range(len(images))}
    trained = {row for batch, rows in task._loader.batches(0) for row in rows.tolist()}
    assert (len(watched), len(trained), watched & trained) == (8, 32, set())
    assert len(targets) == 40
    with pytest.raises(XCiTError, match="holdout is 40, but must be a share below 1, or a whole number of images"):
        MultiLabelTask(config_of(root, holdout=40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, "2 class_weights for 3 classes: give one for each"),
        ({"positive_weights": (1.0, 2.0)}, "2 positive_weights for 3 classes: give one for each"),
        ({"class_weights": (1.0, 0.0, 1.0)}, r"class_weights are 1\.0, 0\.0, 1\.0, but must be above 0"),
        ({"augmentation": AugmentationConfig(mixup=0.8)}, r"augmentation\.mixup: .* set this field to 0"),
        (
            {"augmentation": AugmentationConfig(label_smoothing=0.1)},
            r"augmentation\.label_smoothing: .* set this field to 0",
        ),
        ({"holdout": 2, "val_data": "x"}, "give holdout or val_data, not both"),
        ({"data": ""}, "stripes has no data of its own: set data to a list of images"),
    ],
)
def test_fields_are_checked(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        MultiLabelTask(replace(config_of(root), **changes))


def test_a_run_s_yaml_gives_it_back(root: Path, tmp_path: Path) -> None:
    config = override(get_recipe("xcit-nano-12-p16_multi-label"), {"positive_weights": "1,2,3", "data": str(root)})
    save_yaml(config, tmp_path / "run.yaml")
    assert get_recipe(str(tmp_path / "run.yaml")) == config
