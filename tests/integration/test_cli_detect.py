"""Composes scenes, trains a small detector on them, measures it and uses it, with the command for each."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.data.coco import open_coco

RECIPE = "mask-rcnn_xcit-pico_fashion-scenes"
SHORT = ("--schedule.epochs", 1, "--schedule.warmup_epochs", 0, "--run.batch_size", 2, "--run.num_workers", 0)
SMALL = ("--model.backbone.depth", 2, "--model.out_indices", "0,0,1,1", "--model.channels", 16)


@pytest.fixture
def scenes(make_scenes) -> Path:
    return make_scenes("detection", 4, 2)


def test_made_trained_measured_and_used(xcit, scenes: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    done = xcit("train", RECIPE, "--data", scenes, "--out", run, "--device", "cpu", *SHORT, *SMALL)
    assert done.status == 0, done.err
    assert "box_AP" in done.out and "mask_AP50" in done.out
    model = run / "model.safetensors"
    assert f"use them: xcit detect IMAGE... --model {model} --out detections" in done.out

    arguments = ("test", run / "config.yaml", model, "--data", scenes, "--workers", 0, "--device", "cpu")
    whole = xcit(*arguments, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    lines = whole.out.splitlines()
    assert (lines[0], lines[1], lines[14]) == ("images 2", "boxes", "masks") and len(lines) == 28
    assert lines[2].startswith(" Average Precision (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ")
    assert lines[13].startswith(" Average Recall    (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = nan")
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert set(report["box"]) == set(report["mask"]) and report["box"]["APl"] is None

    # Damaged images are named and counted, and the others measured.
    path = scenes / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"]["counts"] = "oh no"
    path.write_text(json.dumps(content))
    (scenes / "val" / "00002.png").write_text("nothing")
    some = xcit(*arguments, "--out", tmp_path / "some")
    assert some.status == 1
    assert "xcit: 1 annotations left out, for their mask is malformed: annotation 1 of 00001.png" in some.err
    assert "00002.png: not an image that can be read" in some.err
    assert "xcit: 1 images could not be read and were not measured" in some.err

    done = xcit("detect", scenes / "train", scenes / "val", "--model", model, "--out", out, "--score", 0.01, "--device",
                "cpu")  # fmt: skip
    assert done.status == 1
    assert "00002.png" in done.err and "xcit: 1 of 6 images could not be read" in done.err
    assert np.asarray(Image.open(out / "train" / "00001-detections.png")).shape == (288, 384, 3)
    found = json.loads((out / "detections.json").read_text())
    assert len(found["images"]) == 5 and [one["id"] for one in found["categories"]] == list(range(1, 11))
    assert f"{out}: {len(found['annotations'])} objects in 5 images" in done.out
    # The file has COCO's format.
    again = open_coco(out / "detections.json", "val")
    assert len(again) == 5 and sum(len(image.objects) for image in again.images) == len(found["annotations"])

    full = xcit(
        "detect", scenes / "train", "--model", model, "--out", tmp_path / "full", "--full-size", "--no-pictures"
    )
    assert full.status == 0 and [path.name for path in (tmp_path / "full").iterdir()] == ["detections.json"]


def test_mistakes(xcit, scenes: Path, tmp_path: Path) -> None:
    both = xcit("detect", scenes, "--model", "x", "--out", tmp_path / "o", "--full-size", "--short-side", 100)
    assert both.status == 2 and "give --full-size, or --short-side and --long-side, not both" in both.err
    other = xcit("detect", scenes, "--model", "packaged", "--out", tmp_path / "o")
    assert other.status == 2 and "packaged is for image-classification, not for object-detection: `xcit" in other.err
    done = xcit("test", RECIPE, "packaged", "--data", scenes)
    assert done.status == 2 and "packaged is no detector" in done.err
    done = xcit("train", RECIPE, "--data", scenes, "--model.num_classes", 4, "--out", tmp_path / "run")
    assert done.status == 2 and "has 10 classes, the model 4: set model.num_classes to 10" in done.err
