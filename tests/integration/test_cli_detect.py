"""Tests the commands for detection: composes scenes, trains a small detector on them, measures it and uses it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image

from xcit import save_model
from xcit.data.coco import open_coco
from xcit.data.coco_masks import decode_mask
from xcit.models import XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN

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

    # Damaged images are reported and counted; the others are measured.
    path = scenes / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"]["counts"] = "oh no"
    path.write_text(json.dumps(content))
    (scenes / "val" / "00002.png").write_text("nothing")
    some = xcit(*arguments, "--out", tmp_path / "some")
    assert some.status == 1
    assert "xcit: 1 annotations left out, because their mask is invalid: annotation 1 of 00001.png" in some.err
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


SIZE = (70, 200)
LEFT, TOP, PIXEL = 500_000, 5_300_000, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a detector with random weights that finds objects everywhere."""
    backbone = XCiTConfig(
        patch_size=8, embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_classes": 3, "channels": 8, "box_features": 16, "out_indices": (0, 0, 1, 1)}
    shape |= {"mean": (0.4,) * 3, "std": (0.25,) * 3, "anchor_scale": 4.0}  # as the recipe has them
    built = MaskRCNN(MaskRCNNConfig(backbone=backbone, **shape)).eval()
    with torch.no_grad():
        for name, value in built.named_parameters():
            if value.ndim > 1 and "temperature" not in name:
                value.normal_(std=value[0].numel() ** -0.5)
    built.info = DetectorInfo(name="three", class_names=("cat", "dog", "cow"), category_ids=(2, 4, 7))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(built, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a picture as a PNG, as a slide, and as a GeoTIFF with nodata (0) in its right half."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(1, 256, (*SIZE, 3), dtype=np.uint8)
    tifffile.imwrite(
        folder / "slide.svs", pixels, photometric="rgb", tile=(32, 32), metadata=None,
        description="Aperio Image Library v12|AppMag = 20|MPP = 0.5", resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    Image.fromarray(pixels).save(folder / "photograph.png")
    pixels[:, 100:] = 0
    with rasterio.open(
        folder / "map.tif", "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=3, dtype="uint8", nodata=0,
        crs="EPSG:32632", transform=rasterio.Affine(PIXEL, 0, LEFT, 0, -PIXEL, TOP),
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    return folder


def rings(feature: dict[str, Any]) -> list[np.ndarray]:
    """Returns all points of a feature's outlines."""
    geometry = feature["geometry"]
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return [np.array(polygon[0]) for polygon in polygons]


def test_full_size(xcit, model: Path, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--model", model, "--score", 0.2, "--full-size", "--device", "cpu")
    bounds = ("--memory", "400MB", "--scratch", tmp_path / "scratch")
    done = xcit("detect", files, files / "slide.svs", *options, *bounds, "--out", out)
    assert done.status == 0, done.err
    lines = [line for line in done.err.splitlines() if "megapixels per second" in line]
    assert len(lines) == 3 and all("200 x 70 pixels, 4 passes, tokens in memory" in line for line in lines)
    names = {path.name for path in out.iterdir()}
    assert names == {
        "detections.json", "map-detections.png", "map-detections.geojson", "photograph-detections.png",
        "slide-detections.png", "slide-detections.geojson",
    }  # fmt: skip
    found = json.loads((out / "detections.json").read_text())
    of_image = {
        Path(image["file_name"]).name: [one for one in found["annotations"] if one["image_id"] == image["id"]]
        for image in found["images"]
    }
    assert all(of_image.values()) and {one["category_id"] for one in found["annotations"]} <= {2, 4, 7}

    # The map's GeoJSON has the masks' outlines in map coordinates, and no object in the area of nodata.
    content = json.loads((out / "map-detections.geojson").read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32632"
    has_mask = [one for one in of_image["map.tif"] if one["area"]]
    assert len(content["features"]) == len(has_mask) > 0
    for feature, one in zip(content["features"], has_mask, strict=True):
        assert feature["properties"]["score"] == pytest.approx(one["score"], abs=1e-6)
        points = np.concatenate(rings(feature))
        x, y = (points[:, 0] - LEFT) / PIXEL, (TOP - points[:, 1]) / PIXEL
        rows, columns = np.nonzero(decode_mask(one["segmentation"], SIZE))
        assert (x.min(), y.min(), x.max(), y.max()) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        )  # fmt: skip
        assert one["bbox"][0] + one["bbox"][2] / 2 < 104

    # The slide's GeoJSON can be imported by QuPath; coordinates are pixels of the slide's largest level.
    slide = json.loads((out / "slide-detections.geojson").read_text())
    assert "crs" not in slide and slide["features"]
    first = slide["features"][0]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"]["name"] in ("cat", "dog", "cow")
    assert 0.2 < first["properties"]["measurements"]["score"] <= 1
    assert all(point.min() >= 0 and point.max() <= 200 for ring in map(rings, slide["features"]) for point in ring)

    # Objects of a region have the coordinates of the whole map. --max-objects keeps the best.
    part = xcit("detect", files / "map.tif", *options, "--region", "24,16,80,48", "--max-objects", 3, "--out", tmp_path)
    assert part.status == 0 and "80 x 48 pixels" in part.err and "3 objects in 1 images" in part.out, part.err
    points = np.concatenate(
        [
            ring
            for one in json.loads((tmp_path / "map-detections.geojson").read_text())["features"]
            for ring in rings(one)
        ]
    )
    x, y = (points[:, 0] - LEFT) / PIXEL, (TOP - points[:, 1]) / PIXEL
    assert (x >= 24).all() and (x <= 104).all() and (y >= 16).all() and (y <= 64).all()


def test_average_precision_at_full_size(xcit, model: Path, files: Path, tmp_path: Path) -> None:
    """The objects that a detector finds in an image are the annotations for measuring the same detector."""
    first = xcit(
        "detect", files / "photograph.png", "--model", model, "--score", 0.05, "--full-size", "--out", tmp_path
    )
    assert first.status == 0, first.err
    annotations = tmp_path / "detections.json"
    content = json.loads(annotations.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["area"]]
    content["images"].append({"id": 2, "file_name": str(files / "map.tif"), "height": 70, "width": 199})
    annotations.write_text(json.dumps(content))
    shape = {"num_classes": 3, "channels": 8, "box_features": 16, "out_indices": "0,0,1,1"}
    backbone = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    fields = {**shape, **{f"backbone.{name}": value for name, value in backbone.items()}}
    config = xcit("config", RECIPE, *(word for name, value in fields.items() for word in (f"--model.{name}", value)))
    (tmp_path / "recipe.yaml").write_text(config.out)
    common = ("test", tmp_path / "recipe.yaml", model, "--data", annotations, "--workers", 0, "--out", tmp_path / "t")
    done = xcit(*common, "--full-size", "--memory", "1GB")
    assert done.status == 1  # one of the two images has the wrong size
    assert "map.tif: 200 x 70 pixels, but 199 x 70 in" in done.err
    # AP is below 100: objects with an empty mask are found again, but are not among the annotations.
    whole = json.loads((tmp_path / "t" / "report.json").read_text())
    assert whole["num_images"] == 1 and whole["box"]["AP50"] > 75 and whole["box"]["AP75"] == whole["box"]["AP50"]
    xcit(*common)
    scaled = json.loads((tmp_path / "t" / "report.json").read_text())
    assert scaled["box"]["AP50"] < whole["box"]["AP50"] / 2
    assert "--memory is for images at their own size: give" in xcit(*common, "--memory", "1GB").err


def test_mistakes(xcit, scenes: Path, tmp_path: Path) -> None:
    both = xcit("detect", scenes, "--model", "x", "--out", tmp_path / "o", "--full-size", "--short-side", 100)
    assert both.status == 2 and "give --full-size, or --short-side and --long-side, not both" in both.err
    other = xcit("detect", scenes, "--model", "packaged", "--out", tmp_path / "o")
    assert other.status == 2 and "packaged is for image-classification, not for object-detection: `xcit" in other.err
    done = xcit("test", RECIPE, "packaged", "--data", scenes)
    assert done.status == 2 and "packaged is no detector" in done.err
    done = xcit("train", RECIPE, "--data", scenes, "--model.num_classes", 4, "--out", tmp_path / "run")
    assert done.status == 2 and "has 10 classes, the model has 4: set model.num_classes to 10" in done.err
