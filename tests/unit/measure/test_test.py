"""Tests `xcit.test` with a small model for ImageNet's 1000 classes, measured on a few classes by a run's YAML file."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.config import save_yaml
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing, preprocess, published_preprocessing
from xcit.images.read import read_image
from xcit.inference.segment import SlidingWindow
from xcit.measure import test as evaluation
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.training.tasks.classification import ClassificationConfig
from xcit.zoo import save_model
from xcit.zoo.classes import imagenet_class_ids, imagenet_class_names

TINY = XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2)
WNIDS = ("n02123045", "n15075141", "n01440764")  # tabby 281, toilet tissue 999, tench 0
NANO = "xcit-nano-12-p16_8xb128_in1k"


class Setting(NamedTuple):
    folder: Path
    config: str
    checkpoint: str
    data: str
    model: XCiT
    recipe: ClassificationConfig

    def test(self, **changes: object) -> evaluation.TestResult:
        arguments = {"config": self.config, "checkpoint": self.checkpoint, "data": self.data, "num_workers": 0}
        return evaluation.test(**(arguments | changes))  # type: ignore[arg-type]


def make_model(num_classes: int = 1000, info: ModelInfo | None = None) -> XCiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = XCiT(replace(TINY, num_classes=num_classes)).eval()
        # So large that the predicted classes differ from image to image.
        model.head.weight.data.normal_(std=3.0)
    model.info = info
    return model


def write_images(root: Path, names: tuple[str, ...], count: int = 2) -> None:
    draw = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 30)).save(root / name / f"{index}.png")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    recipe = ClassificationConfig(
        name="tiny", model=TINY, preprocessing=Preprocessing(image_size=16, resize="exact", resize_to=16)
    )
    save_yaml(recipe, tmp_path / "tiny.yaml")
    model = make_model()
    save_model(model, tmp_path / "tiny.safetensors")
    write_images(tmp_path / "imagenet" / "val", WNIDS)
    return Setting(
        tmp_path,
        str(tmp_path / "tiny.yaml"),
        str(tmp_path / "tiny.safetensors"),
        str(tmp_path / "imagenet"),
        model,
        recipe,
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XCIT_OFFLINE", "1")


def naive(setting: Setting, spec: Preprocessing) -> tuple[float, float, float, dict[tuple[int, int], int]]:
    """Returns top-1, top-5, the loss, and the counts by (true class, predicted class), computed image by image."""
    right1 = right5 = 0
    losses: list[Any] = []
    counts: dict[Any, Any] = {}
    paths = sorted(Path(setting.data).rglob("*.png"))
    for path in paths:
        true = imagenet_class_ids().index(path.parent.name)
        with torch.inference_mode():
            logits = setting.model(preprocess(read_image(path), spec)[None])[0].double().numpy()
        ranked = np.argsort(-logits)
        right1 += int(ranked[0] == true)
        right5 += int(true in ranked[:5])
        losses.append(math.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[true])
        counts[true, int(ranked[0])] = counts.get((true, int(ranked[0])), 0) + 1
    return 100 * right1 / len(paths), 100 * right5 / len(paths), float(np.mean(losses)), counts


def test_a_part_of_imagenet_is_matched_by_wnid(setting: Setting) -> None:
    # The head's bias is changed so that the model classifies an image of the first class correctly, but does not
    # predict this class for all images.
    with torch.inference_mode():
        image = preprocess(read_image(Path(setting.data) / "val" / WNIDS[0] / "0.png"), setting.recipe.preprocessing)
        logits: Any = setting.model(image[None])[0]
    setting.model.get_parameter("head.bias").data[281] += logits.max() - logits[281] + 0.01
    save_model(setting.model, Path(setting.checkpoint))
    top1, top5, loss, counts = naive(setting, setting.recipe.preprocessing)
    assert 0 < top1 <= 100

    seen: list[int] = []
    totals: list[int] = []
    result: Any = setting.test(batch_size=4, started=totals.append, report=seen.append)
    report = result.report
    assert (totals, seen, report.num_images) == ([6], [4, 2], 6)
    assert (report.top1, report.top5) == (top1, top5)
    assert report.loss == pytest.approx(loss, rel=1e-5)
    assert report.confusion.shape == (1000, 1000)
    found = {(row, column): int(report.confusion[row, column]) for row, column in report.confusion.nonzero().tolist()}
    assert found == counts
    assert {row for row, _ in found} == {0, 281, 999}
    assert result.class_names == imagenet_class_names()
    assert result.preprocessing == setting.recipe.preprocessing
    assert report.unreadable == ()


def test_protocols_prepare_the_images_in_their_own_ways(setting: Setting) -> None:
    by_recipe = setting.test()
    found = {}
    for protocol in ("mmpretrain", "official"):
        result: Any = setting.test(protocol=protocol)
        assert result.preprocessing == published_preprocessing(protocol, 16)
        found[protocol] = result.report.loss
        assert result.report.loss == pytest.approx(naive(setting, result.preprocessing)[2], rel=1e-5)
    assert len({by_recipe.report.loss, *found.values()}) == 3
    assert published_preprocessing("mmpretrain", 16).resize_to == 18
    assert published_preprocessing("official", 16).resize_to == 16


def test_protocols_are_for_imagenet(setting: Setting) -> None:
    with pytest.raises(XCiTError, match="xcit-pico-fashion-mnist is not an ImageNet recipe"):
        setting.test(config="xcit-pico-fashion-mnist", checkpoint="packaged", protocol="official")


def test_a_flat_folder_counts_the_same(setting: Setting) -> None:
    expected = setting.test().report
    flat = setting.folder / "flat" / "val"
    flat.mkdir(parents=True)
    lines = []
    for path in sorted(Path(setting.data).rglob("*.png")):
        name = f"{path.parent.name}_{path.name}"
        path.rename(flat / name)
        lines.append(f"{name} {path.parent.name}")
    (flat.parent / "val.txt").write_text("\n".join(lines))
    found = setting.test(data=str(flat.parent)).report
    assert torch.equal(found.confusion, expected.confusion)
    assert found.loss == pytest.approx(expected.loss)


def test_an_unreadable_image_is_named_and_not_counted(setting: Setting) -> None:
    expected = setting.test().report.confusion
    bad = Path(setting.data) / "val" / WNIDS[1] / "broken.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 broken")
    report = setting.test().report
    assert report.num_images == 6
    assert torch.equal(report.confusion, expected)
    assert len(report.unreadable) == 1
    assert report.unreadable[0].startswith(f"{bad}: ")


def test_a_model_without_a_classifier_is_for_other_verbs(setting: Setting) -> None:
    save_yaml(replace(setting.recipe, model=replace(TINY, num_classes=0)), Path(setting.config))
    save_model(XCiT(replace(TINY, num_classes=0)), Path(setting.checkpoint))
    with pytest.raises(XCiTError) as caught:
        setting.test()
    assert str(caught.value) == (
        f"{setting.checkpoint} has no classifier: measure its features with xcit knn or xcit linear"
    )


def test_unknown_classes_are_named(setting: Setting) -> None:
    write_images(Path(setting.data) / "val", ("cat", "dog"))
    with pytest.raises(XCiTError) as caught:
        setting.test()
    assert str(caught.value) == (
        f"{setting.data} has 5 classes, but the model's 1000 classes do not include 'cat', 'dog'"
        "; give a class map that maps them to the model's classes"
    )


def test_classes_of_ones_own_are_matched_by_name(setting: Setting) -> None:
    spec = setting.recipe.preprocessing
    save_yaml(replace(setting.recipe, model=replace(TINY, num_classes=3)), Path(setting.config))
    data = setting.folder / "animals"
    write_images(data, ("cat", "dog"))
    info = ModelInfo(name="animals", preprocessing=spec, class_names=("dog", "bird", "cat"))
    save_model(make_model(3, info), Path(setting.checkpoint))
    result: Any = setting.test(data=str(data))
    assert result.class_names == ("dog", "bird", "cat")
    assert result.report.confusion.sum(dim=1).tolist() == [2, 0, 2]
    # The file has no class names, so folders are matched to classes by order.
    write_images(data, ("bird",))
    save_model(make_model(3), Path(setting.checkpoint))
    result = setting.test(data=str(data))
    assert result.class_names == ("bird", "cat", "dog")
    assert result.report.confusion.sum(dim=1).tolist() == [2, 2, 2]
    # If two classes have the same name, neither is used.
    save_model(make_model(3, replace(info, class_names=("cat", "bird", "cat"))), Path(setting.checkpoint))
    with pytest.raises(XCiTError, match="2 of the model's classes are called 'cat': choose one with a class map"):
        setting.test(data=str(data))
    save_model(make_model(3), Path(setting.checkpoint))
    # If the numbers of classes differ, classes can't be matched by order.
    write_images(data, ("worm",))
    with pytest.raises(
        XCiTError, match=r"animals has 4 classes, but the model's 3 classes do not include 'bird', 'cat'"
    ):
        setting.test(data=str(data))


def test_the_checkpoint_must_fit_the_recipe(setting: Setting) -> None:
    save_model(make_model(3), Path(setting.checkpoint))
    with pytest.raises(XCiTError, match="The file has 3 classes, the model has 1000"):
        setting.test()
    with pytest.raises(
        XCiTError, match="xcit-pico-fashion-mnist does not fit tiny: the model's recipe is xcit-pico-fashion-mnist"
    ):
        setting.test(checkpoint="packaged")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", ["xcit-nano-12-p16", "xcit_nano_12_p16_224.fb_in1k", "timm/xcit_nano_12_p16_224.fb_dist_in1k"]
)
def test_names_of_the_zoo_are_no_paths(setting: Setting, name: str) -> None:
    with pytest.raises(XCiTError, match="cannot get the weights of xcit-nano-12-p16_3rdparty"):
        setting.test(config=f"configs/xcit/{NANO}.py", checkpoint=name)


def test_a_checkpoint_may_be_a_path_or_a_url(setting: Setting) -> None:
    expected = setting.test().report.confusion
    path = Path(setting.checkpoint)
    for checkpoint in (path, path.as_uri()):
        assert torch.equal(setting.test(checkpoint=checkpoint).report.confusion, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "xcit-nano"}, "no recipe is called 'xcit-nano'"),
        ({"config": NANO, "data": "nowhere"}, "nowhere: no such folder"),
        ({"checkpoint": "xcit-nano-12-p61"}, "no model is called 'xcit-nano-12-p61'; did you mean"),
        ({"checkpoint": "no.pth"}, r"cannot read no\.pth: no such file"),
        (
            {"config": NANO, "checkpoint": "xcit-tiny-12-p16"},
            "xcit-tiny-12-p16_3rdparty_in1k does not fit xcit-nano-12-p16_8x",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_downloaded(
    setting: Setting, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(XCiTError, match=message):
        setting.test(**changes)


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        (NANO, {"window": SlidingWindow()}, f"{NANO} trains no segmenter: a window does not apply"),
        ("sem-fpn_xcit-pico_fashion-scenes", {"protocol": "official"}, "trains no classifier: the published protocols"),
        (
            "mask-rcnn_xcit-pico_fashion-scenes",
            {"dtype": torch.bfloat16},
            "mask-rcnn_xcit-pico_fashion-scenes: a detector is measured only in float32, not in torch.bfloat16",
        ),
        ("dino_xcit-pico_fashion-mnist", {}, "no detector; measure features with `xcit knn` or `xcit linear`"),
    ],
)
def test_what_does_not_belong_to_the_task_is_refused(config: str, asked: dict[str, object], message: str) -> None:
    with pytest.raises(XCiTError, match=re.escape(message)):
        evaluation.test(config, "nowhere.pth", "nowhere", **asked)  # type: ignore[arg-type]


def test_the_files_of_a_report(setting: Setting) -> None:
    (Path(setting.data) / "val" / WNIDS[0] / "empty.png").write_bytes(b"")
    result = setting.test()
    folder = setting.folder / "out" / "tiny"
    paths = result.write(folder, config="tiny", checkpoint="c.pth", data="imagenet")
    assert [path.name for path in paths] == ["report.json", "confusion.csv", "confusion.png"]
    report = result.report
    assert json.loads(paths[0].read_text()) == {
        "config": "tiny",
        "checkpoint": "c.pth",
        "data": "imagenet",
        "preprocessing": {
            "image_size": 16,
            "resize": "exact",
            "resize_to": 16,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "num_images": 6,
        "top1": report.top1,
        "top5": report.top5,
        "loss": report.loss,
        "unreadable": list(report.unreadable),
    }
    assert len(report.unreadable) == 1
    with paths[1].open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head[1:]) == tuple(row[0] for row in rows) == imagenet_class_names()
    counts = torch.tensor([[int(value) for value in row[1:]] for row in rows])
    assert torch.equal(counts, report.confusion)
    with Image.open(paths[2]) as picture:
        picture.load()
        assert min(picture.size) > 300
    # Writing again replaces the files.
    assert result.write(folder, config="t", checkpoint="c.pth", data="d") == paths
    assert json.loads(paths[0].read_text())["config"] == "t"


def test_numbered_folders_are_a_models_classes_by_their_numbers(setting: Setting) -> None:
    by_wnid = setting.test()
    for wnid, number in zip(WNIDS, (281, 999, 0), strict=True):
        (Path(setting.data) / "val" / wnid).rename(Path(setting.data) / "val" / str(number))
    lines: list[str] = []
    by_number = setting.test(announce=lines.append)
    assert torch.equal(by_number.report.confusion, by_wnid.report.confusion)
    assert by_number.report.confusion.sum(dim=1).nonzero().flatten().tolist() == [0, 281, 999]
    assert lines == [
        f"3 classes: 0, 281, 999; 6 images in {setting.data}/val",
        f"{setting.data}: its class names are used as indices of the model's classes; 0 is 'n01440764'",
    ]


def test_lines_are_shown_unless_somebody_else_hears_of_them(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    result = setting.test()
    assert result.model == f"{setting.checkpoint} (1000 classes)"
    assert capsys.readouterr().err.startswith("3 classes: ")
    setting.test(report=lambda _: None)
    assert capsys.readouterr() == ("", "")


def test_a_class_map_says_which_classes_are_meant(setting: Setting) -> None:
    by_wnid = setting.test()
    folders = [str(Path(setting.data) / "val" / name) for name in ("my cat", "tissue", "fish")]
    for wnid, folder in zip(WNIDS, folders, strict=True):
        (Path(setting.data) / "val" / wnid).rename(folder)
    path = setting.folder / "map.csv"
    path.write_text(f"my cat,281\ntissue,toilet tissue\nfish,{WNIDS[2]}\n")
    lines: list[str] = []
    mapped = setting.test(class_map=path, announce=lines.append)
    assert torch.equal(mapped.report.confusion, by_wnid.report.confusion)
    assert lines[0] == f"3 classes: 281, toilet tissue, n01440764; 6 images in {setting.data}/val, classes by {path}"
    path.write_text("my cat,281\ntissue,tishue\nfish,1000\n")
    with pytest.raises(XCiTError, match=r"the model's 1000 classes do not include '1000', 'tishue'|'tishue', '1000'"):
        setting.test(class_map=path)
    # A folder with a number as its name is not taken for a class index if other folders have names.
    (Path(setting.data) / "val" / "my cat").rename(Path(setting.data) / "val" / "281")
    with pytest.raises(XCiTError, match="do not include '281', 'fish', 'tissue'"):
        setting.test()
    (Path(setting.data) / "val" / "281").rename(Path(setting.data) / "val" / "my cat")
    # The class map of the run's config is used for the run's own data, and not for other data.
    recipe = replace(setting.recipe, data=setting.data, class_map=str(path))
    save_yaml(recipe, Path(setting.config))
    path.write_text(f"my cat,281\ntissue,{WNIDS[1]}\nfish,{WNIDS[2]}\n")
    assert torch.equal(setting.test().report.confusion, by_wnid.report.confusion)
    with pytest.raises(XCiTError, match="do not include 'fish', 'my cat'"):
        setting.test(data=f"{setting.data}/val")
    with pytest.raises(XCiTError, match="a class map does not apply"):
        evaluation.test("upernet_xcit-pico_fashion-scenes", "x", "y", class_map=path)


def test_what_a_run_held_out_is_what_is_measured(setting: Setting) -> None:
    info = ModelInfo(name="own", preprocessing=setting.recipe.preprocessing, class_names=("ant", "bee"))
    save_model(make_model(2, info), setting.folder / "own.safetensors")
    write_images(setting.folder / "own", ("ant", "bee"), count=10)
    data = str(setting.folder / "own")
    recipe = replace(setting.recipe, model=replace(TINY, num_classes=2), data=data, holdout=0.2)
    save_yaml(recipe, setting.folder / "own.yaml")
    asked: dict[str, Any] = {"checkpoint": str(setting.folder / "own.safetensors"), "data": data}
    lines: list[str] = []
    own = setting.test(config=str(setting.folder / "own.yaml"), announce=lines.append, **asked)
    assert own.report.num_images == 4
    assert lines[0] == f"2 classes: ant, bee; 4 images in {data}"
    assert lines[1] == f"these images are held out of the training images of {data}: holdout 0.2"
    save_yaml(replace(recipe, data="", holdout=0.0), setting.folder / "other.yaml")
    other = str(setting.folder / "other.yaml")
    same = setting.test(config=other, holdout=0.2, **asked)
    assert torch.equal(same.report.confusion, own.report.confusion)
    assert same.report.loss == own.report.loss
    lines = []
    assert setting.test(config=other, announce=lines.append, **asked).report.num_images == 20
    assert lines[1].startswith(f"warning: {data} has no folder val: all its images are measured")
    with pytest.raises(XCiTError, match=r"holdout is 3, but .* has validation images"):
        setting.test(holdout=3)
