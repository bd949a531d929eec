"""Tests the commands for segmentation: composes scenes, trains a small segmenter on them, measures it and uses it."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from xcit.data.segmentation import open_scenes
from xcit.images.read import read_labels

RECIPE = "sem-fpn_xcit-pico_fashion-scenes"
SHORT = ("--schedule.epochs", 1, "--schedule.warmup_steps", 1, "--run.batch_size", 2, "--run.num_workers", 0)
SMALL = ("--model.backbone.depth", 2, "--model.out_indices", "0,0,1,1", "--epoch_steps", 2)


@pytest.fixture
def scenes(make_scenes) -> Path:
    return make_scenes("segmentation", 3, 2)


def test_made_trained_measured_and_used(xcit, scenes: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    done = xcit("train", RECIPE, "--data", scenes, "--out", run, "--device", "cpu", *SHORT, *SMALL)
    assert done.status == 0, done.err
    assert "mIoU" in done.out
    assert f"use them: xcit segment IMAGE... --model {run / 'model.safetensors'} --out labels" in done.out

    arguments = ("test", run / "config.yaml", run / "model.safetensors", "--data", scenes, "--workers", 0)
    whole = xcit(*arguments, "--device", "cpu", "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err
    assert [line.split()[0] for line in whole.out.splitlines()] == ["images", "mIoU", "mAcc", "aAcc"] + 3 * ["wrote"]
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert f"mIoU   {report['mIoU']:.2f}%" in whole.out
    assert (tmp_path / "whole" / "iou.csv").read_text().splitlines()[1].startswith("ground,")
    assert xcit(*arguments, "--slide", "--window", 64, "--device", "cpu", "--out", tmp_path / "slid").status == 0

    sized = xcit(*arguments, "--full-size", "--memory", "1GB", "--device", "cpu", "--out", tmp_path / "sized")
    assert sized.status == 0, sized.err
    assert json.loads((tmp_path / "sized" / "report.json").read_text())["full_size"] is True
    check_full_size(xcit, scenes, run / "model.safetensors", tmp_path)

    # A scene that can't be used is reported and counted; the other scene is measured.
    Image.fromarray(np.full((96, 128), 99, np.uint8)).save(scenes / "labels" / "val" / "00001.png")
    some = xcit(*arguments, "--device", "cpu", "--out", tmp_path / "some")
    assert some.status == 1
    assert "12288 of 12288 pixels have a label that is not a class: 99; labels are 0 to 10, or 255" in some.err
    assert "xcit: 1 images could not be read and were not measured" in some.err

    (scenes / "images" / "val" / "broken.png").write_text("nothing")
    done = xcit("segment", scenes / "images", "--model", run / "model.safetensors", "--out", out, "--device", "cpu",
                "--slide", "--window", 64, "--full-size")  # fmt: skip
    assert done.status == 1
    assert "broken.png" in done.err
    assert "xcit: 1 of 6 images could not be read" in done.err
    areas = json.loads((out / "areas.json").read_text())
    assert len(areas) == 5
    names = open_scenes(str(scenes), "train").class_names
    for source, shares in areas.items():
        assert sum(shares.values()) == pytest.approx(1)
        place = out / Path(source).relative_to(scenes / "images").with_suffix("")
        with Image.open(place.with_name(f"{place.name}-labels.png")) as picture:
            assert picture.mode == "P"
        labels = read_labels(place.with_name(f"{place.name}-labels.png"))
        assert labels.shape == (96, 128)
        assert {names[index] for index in np.unique(labels)} == set(shares)
        with Image.open(place.with_name(f"{place.name}-overlay.png")) as shown:
            assert shown.height > 96


def check_full_size(xcit, scenes: Path, model: Path, tmp_path: Path) -> None:
    """Segments a map and a picture in stripes: checks labels (for the map a GeoTIFF), outlines and overviews."""
    images, out = tmp_path / "maps", tmp_path / "labels"
    images.mkdir()
    pixels = np.asarray(Image.open(scenes / "images" / "val" / "00000.png")).repeat(6, axis=0).repeat(6, axis=1).copy()
    pixels[:50, :90] = 0
    with rasterio.open(
        images / "map.tif", "w", driver="GTiff", height=576, width=768, count=3, dtype="uint8", nodata=0,
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_000_000),
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))
    Image.fromarray(pixels[:200, :300]).save(images / "photo.png")
    (images / "broken.tif").write_text("nothing")
    done = xcit("segment", images, "--model", model, "--out", out, "--device", "cpu", "--full-size", "--memory", "1GB",
                "--polygons")  # fmt: skip
    assert done.status == 1 and "broken.tif" in done.err
    assert "map.tif: 768 x 576 pixels, 4 passes, tokens in memory" in done.err and "megapixels per second" in done.err
    with rasterio.open(out / "map-labels.tif") as file, rasterio.open(images / "map.tif") as source:
        assert file.crs == source.crs and file.bounds == source.bounds and file.overviews(1) == [2]
        labels = file.read(1)
    assert (labels[:50, :90] == 255).all() and (labels[60:] < 11).all()
    assert sum(json.loads((out / "areas.json").read_text())[str(images / "map.tif")].values()) == pytest.approx(1)
    outlines = json.loads((out / "map-labels.geojson").read_text())
    assert outlines["crs"]["properties"]["name"].endswith("EPSG::32633") and outlines["features"]
    photo = json.loads((out / "photo-labels.geojson").read_text())["features"]
    assert photo[0]["properties"]["objectType"] == "annotation"
    with Image.open(out / "map-overlay.png") as picture:
        assert picture.width == 768
    refused = xcit("segment", images, "--model", model, "--out", out, "--slide", "--full-size", "--memory", "1GB")
    assert refused.status == 2 and "--memory needs images in stripes" in refused.err


def test_mistakes_are_one_line(xcit, scenes: Path, tmp_path: Path) -> None:
    image = scenes / "images" / "val" / "00000.png"
    done = xcit("segment", image, "--model", "packaged", "--out", tmp_path / "out")
    assert done.status == 2
    assert "packaged is for image-classification, not for semantic-segmentation" in done.err
    (scenes / "labels" / "train" / "00002.png").unlink()
    done = xcit("train", RECIPE, "--data", scenes, "--out", tmp_path / "run", "--device", "cpu", *SHORT, *SMALL)
    assert done.status == 2
    assert "1 of the 3 images in" in done.err
    assert len(done.err.splitlines()) == 1
    again = xcit("make-data", "fashion-scenes", "--task", "segmentation", "--out", scenes)
    assert again.status == 2
    assert "already exists" in again.err
