"""Tests label maps of images in stripes: the same labels as for the whole image, resuming, and the memory bound."""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import rasterio
import rasterio.features
import torch
from small_models import BACKBONE, build

from xcit.data.segmentation import Labels
from xcit.data.segmentation_transforms import normalized
from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.images.resize_8bit import Pixels
from xcit.images.rows import ImageRows, RowsInfo
from xcit.images.selection import Selection
from xcit.inference.full_size import FullSize
from xcit.inference.label_rows import best_labels
from xcit.inference.reading import Unreadable
from xcit.inference.segment import SlidingWindow, predict_labels, segment
from xcit.inference.segment_full_size import LargeSegmentation, segment_large_each
from xcit.models import Segmenter, SegmenterInfo
from xcit.models.segmentation import SegmenterConfig, build_segmenter
from xcit.streaming import Budget, Report, plan

KINDS = ("upernet", "sem-fpn")
WIDE = replace(BACKBONE, embed_dim=96, patch_size=8)
NAMES = ("sea", "land", "town", "wood")
SPEC = SegmentationPreprocessing(long_side=0, short_side=0)
INFO = SegmenterInfo(name="small", preprocessing=SPEC, class_names=NAMES)
SIZE = (301, 170)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def models() -> dict[str, Segmenter]:
    """Returns small segmenters with random norm statistics."""
    found = {}
    for kind in KINDS:
        model = cast(Segmenter, build(kind))
        for name, value in model.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 2)
        model.info = INFO
        found[kind] = model
    return found


@pytest.fixture(scope="module")
def fused(models: dict[str, Segmenter]) -> dict[str, Segmenter]:
    return {kind: model.fuse() for kind, model in models.items()}


@pytest.fixture
def on_scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FullSize:
    """Makes all plans store tokens and taps in scratch files."""
    original = plan.Costs.plan
    monkeypatch.setattr(plan.Costs, "plan", lambda self, _, size, output: original(self, "scratch", size, output))
    return FullSize(memory=Budget(memory=10**9, scratch=tmp_path / "scratch"))


def picture(height: int, width: int) -> Pixels:
    """Returns noise at two scales, so that classes cover areas."""
    draw = np.random.default_rng(height * width)
    coarse = draw.integers(0, 200, (-(-height // 24), -(-width // 24), 3), dtype=np.uint8)
    large = coarse.repeat(24, axis=0).repeat(24, axis=1)[:height, :width]
    return large + draw.integers(0, 56, large.shape, dtype=np.uint8)


@torch.no_grad()
def check(model: Segmenter, pixels: Pixels, labels: Labels) -> None:
    """Checks labels against the whole image in float64; labels may differ where two logits are almost equal."""
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1) for numbers in (SPEC.mean, SPEC.std))
    image = (torch.from_numpy(pixels.astype(np.float64) / 255).permute(2, 0, 1) - mean) / std
    logits = model.double()(image[None])[0]
    model.float()
    assert labels.shape == logits.shape[1:]
    chosen = logits.gather(0, torch.from_numpy(labels.astype(np.int64))[None])[0]
    assert float((logits.amax(0) - chosen).max()) < 1e-4
    assert len(np.unique(labels)) > 1 or min(labels.shape) < 16


def large(result: LargeSegmentation | Unreadable) -> LargeSegmentation:
    assert isinstance(result, LargeSegmentation)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(4, 4), (5, 90), (64, 64), (97, 130), (255, 33), SIZE])
def test_the_labels_are_the_whole_images(
    kind: str, size: tuple[int, int], models: dict[str, Segmenter], fused: dict[str, Segmenter]
) -> None:
    pixels = picture(*size)
    (result,) = segment_large_each([pixels], fused[kind], INFO, FullSize(memory="1GB"))
    check(models[kind], pixels, large(result).labels())
    # In memory, the head is computed by rows too.
    check(models[kind], pixels, predict_labels(fused[kind], pixels, SPEC, size=size))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_labels_of_an_image_that_was_scaled(kind: str, fused: dict[str, Segmenter]) -> None:
    """Logits are resized to the size of the pixels first, then to the size of the label map."""
    pixels, model = picture(61, 97), fused[kind]
    logits = model(normalized(pixels, SPEC)[None])[0]
    expected = best_labels(logits, (140, 201))
    assert (predict_labels(model, pixels, SPEC, size=(140, 201)) != expected).mean() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_small_stripes_and_scratch_files_change_nothing(
    kind: str, fused: dict[str, Segmenter], on_scratch: FullSize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(*SIZE)
    expected = predict_labels(fused[kind], pixels, SPEC, size=SIZE)
    monkeypatch.setattr("xcit.inference.segment_full_size._USEFUL_ROWS", 3)
    monkeypatch.setattr("xcit.inference.segment_full_size.rows_of_a_stripe", lambda _: 3)
    reports: list[Report] = []
    how = FullSize(memory=on_scratch.memory, report=lambda _, report: reports.append(report))
    for result in segment_large_each([pixels], fused[kind], INFO, how):
        assert (large(result).labels() != expected).mean() < 1e-4
    assert reports[0].bytes_written and "scratch files" in reports[0].line()
    assert not any((tmp_path / "scratch").iterdir())


def file_like(pixels: Pixels) -> ArrayRows:
    """Returns rows with an identity, as a file has, so that a killed run can be resumed."""
    return ArrayRows(pixels, RowsInfo(name="map.tif", identity="map.tif 1"))


@pytest.mark.parametrize("at", [0.4, 0.9])
def test_a_run_that_was_killed_loses_one_stripe_at_most(
    at: float, fused: dict[str, Segmenter], on_scratch: FullSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, model = picture(*SIZE), fused["upernet"]
    expected = predict_labels(model, pixels, SPEC, size=SIZE)
    monkeypatch.setattr("xcit.inference.segment_full_size._USEFUL_ROWS", 3)
    monkeypatch.setattr("xcit.inference.segment_full_size.rows_of_a_stripe", lambda _: 3)

    def kill(done: int, total: int) -> None:
        if done > at * total:
            raise Killed

    with pytest.raises(Killed):
        list(segment_large_each([file_like(pixels)], model, INFO, FullSize(memory=on_scratch.memory, progress=kill)))
    read: list[tuple[int, int]] = []
    how = FullSize(memory=on_scratch.memory, progress=lambda *rows: read.append(rows))
    for result in segment_large_each([file_like(pixels)], model, INFO, how):
        assert (large(result).labels() != expected).mean() < 1e-4
    # The second run started near the point of the kill: in a pass of the backbone, or in the pass of the head.
    assert read[0][0] > (at - 0.2) * read[0][1]


def test_what_is_written_after_the_labels_may_fail_and_the_labels_stay(
    fused: dict[str, Segmenter], on_scratch: FullSize, tmp_path: Path
) -> None:
    pixels, model, taken = picture(*SIZE), fused["sem-fpn"], list[tuple[int, int]]()

    def run(folder: Path) -> None:
        how = FullSize(memory=on_scratch.memory, progress=lambda *rows: taken.append(rows))
        for result in segment_large_each([file_like(pixels)], model, INFO, how):
            large(result).write_tiff(folder / "labels.tif")

    with pytest.raises(XCiTError, match=r"labels\.tif: can't be written: No such file or directory"):
        run(tmp_path / "missing")
    taken.clear()
    run(tmp_path)
    assert not taken and (tmp_path / "labels.tif").exists()


def test_what_a_mask_leaves_out_is_unlabelled(fused: dict[str, Segmenter], tmp_path: Path) -> None:
    mask = np.ones((96, 128), np.uint8)
    mask[30:71, 40:] = 0
    how = FullSize(memory="1GB", selection=Selection(mask=mask))
    (result,) = segment_large_each([picture(96, 128)], fused["upernet"], INFO, how)
    found = large(result)
    assert np.array_equal(found.labels() == 255, mask == 0)
    assert sum(found.areas().values()) == pytest.approx(1)
    assert np.array_equal(np.asarray(found.overlay())[40:60, 60:100], found.overview[40:60, 60:100])
    found.write_tiff(tmp_path / "labels.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it lies on no map
        with rasterio.open(tmp_path / "labels.tif") as file:
            assert np.array_equal(file.read_masks(1) > 0, mask > 0)


def on_the_ground(path: Path, pixels: Pixels) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", height=len(pixels), width=pixels.shape[1], count=3, dtype="uint8",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 400_000, 0, -10, 5_000_000), nodata=0, tiled=True,
        blockxsize=64, blockysize=64,
    ) as file:  # fmt: skip
        file.write(pixels.transpose(2, 0, 1))


def test_a_map_gives_a_map(fused: dict[str, Segmenter], tmp_path: Path) -> None:
    pixels = picture(700, 640)
    pixels[:100, 50:] = 0
    on_the_ground(tmp_path / "map.tif", pixels)
    for region, (left, top, width, height) in ((None, (0, 0, 640, 700)), ((32, 40, 600, 256), (32, 40, 600, 256))):
        how = FullSize(memory="1GB", selection=Selection(region=region))
        (result,) = segment_large_each([tmp_path / "map.tif"], fused["sem-fpn"], INFO, how)
        found = large(result)
        found.write_tiff(tmp_path / "labels.tif")
        count = found.write_polygons(tmp_path / "labels.geojson")
        with rasterio.open(tmp_path / "labels.tif") as file, rasterio.open(tmp_path / "map.tif") as source:
            window = rasterio.windows.Window(left, top, width, height)
            assert file.crs == source.crs and file.bounds == source.window_bounds(window)[:4]
            assert np.array_equal(file.read(1), found.labels()) and file.nodata == 255
            assert file.profile["tiled"] and file.profile["compress"] == "deflate"
            assert file.overviews(1) == [2] and file.colormap(1)[0] == (115, 115, 115, 255)
            assert json.loads(file.tags()["TIFFTAG_IMAGEDESCRIPTION"])["classes"] == list(NAMES)
            drawn = rasterio.features.rasterize(
                shapes_of(tmp_path / "labels.geojson"), (height, width), fill=255, transform=file.transform
            )
        assert (found.labels() == 255).any() and np.array_equal(drawn, found.labels())
        content = json.loads((tmp_path / "labels.geojson").read_text())
        assert count == len(content["features"]) > 3
        assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"


def shapes_of(path: Path) -> Iterator[tuple[Any, int]]:
    for feature in json.loads(path.read_text())["features"]:
        properties = feature["properties"]
        yield feature["geometry"], NAMES.index(properties.get("class") or properties["classification"]["name"])


def test_a_picture_and_its_polygons(models: dict[str, Segmenter], tmp_path: Path) -> None:
    pixels = picture(90, 70)
    (found,) = segment([pixels], models["sem-fpn"], full_size=True, memory="1GB", device="cpu")
    assert not isinstance(found, Unreadable)
    check(models["sem-fpn"], pixels, found.labels)
    assert np.array_equal(found.image, pixels) and found.overlay().size[0] >= 70
    found.write_polygons(tmp_path / "a.geojson")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = rasterio.features.rasterize(shapes_of(tmp_path / "a.geojson"), (90, 70), fill=255)
    assert np.array_equal(drawn, found.labels)
    (one, *_) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert one["properties"]["objectType"] == "annotation" and len(one["properties"]["classification"]["color"]) == 3


def test_the_overview_of_a_large_image(
    models: dict[str, Segmenter], fused: dict[str, Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xcit.inference.segment_full_size.OVERVIEW_PIXELS", 2000)
    pixels = picture(99, 131)
    (result,) = segment_large_each([pixels], fused["upernet"], INFO, FullSize(memory="1GB"))
    found = large(result)
    assert found.scale == 4 and found.overview.shape == (25, 33, 3)
    assert np.array_equal(found.small_labels()[:24, :32], found.labels()[2:98:4, 2:130:4])
    (small,) = segment([pixels], models["upernet"], full_size=True, memory="1GB", device="cpu")
    assert not isinstance(small, Unreadable)
    assert np.array_equal(np.asarray(small.overlay()), np.asarray(found.overlay()))


def test_mistakes_are_said_before_the_first_pass(
    models: dict[str, Segmenter], fused: dict[str, Segmenter], on_scratch: FullSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reason(image: ImageRows | Pixels, how: FullSize) -> str:
        (found,) = segment_large_each([image], fused["upernet"], INFO, how)
        assert isinstance(found, Unreadable)
        return found.reason

    assert "3 x 64 pixels, smaller than one patch of 4 x 4" in reason(picture(64, 3), on_scratch)
    assert "the head of the model takes" in reason(picture(64, 64), FullSize(memory="50MB"))
    assert "has 2 channels, the model takes 3: choose bands" in reason(picture(64, 64)[:, :, :2], on_scratch)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "GB of scratch files are needed, 0.00 GB are free" in reason(picture(64, 64), on_scratch)
    with pytest.raises(XCiTError, match="memory is used only with full_size"):
        segment([picture(64, 64)], models["upernet"], memory="1GB")
    with pytest.raises(XCiTError, match="memory can't be combined with a window"):
        segment([picture(64, 64)], models["upernet"], full_size=True, memory="1GB", window=SlidingWindow())
    watched: Any = models["upernet"].fuse()
    watched.head.fusion.conv.register_forward_hook(lambda *_: None)
    assert not watched.goes_by_rows
    with pytest.raises(XCiTError, match="can't process an image by rows: give a sliding window"):
        list(segment_large_each([picture(64, 64)], watched, INFO, FullSize()))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "hook in the head": lambda model: model.head.register_forward_hook(lambda *_: None),
    "hook in the pyramid": lambda model: model.backbone.pyramid.stride4.register_forward_hook(lambda *_: None),
    "hook on the backbone": lambda model: model.backbone.register_forward_pre_hook(lambda *_: None),
    "another classifier": lambda model: setattr(model.head, "classifier", torch.nn.Sequential(model.head.classifier)),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_parts_that_somebody_watches_are_called(change: str, models: dict[str, Segmenter]) -> None:
    image = torch.randn(2, 3, 33, 50, generator=torch.Generator().manual_seed(0))
    for model in models.values():
        fused = model.fuse()
        assert fused.goes_by_rows and not model.goes_by_rows
        expected = fused(image)
        torch.testing.assert_close(expected, model(image), rtol=1e-4, atol=1e-4)
        CHANGES[change](fused)
        assert not fused.goes_by_rows
        torch.testing.assert_close(fused(image), expected, rtol=1e-4, atol=1e-4)


def test_a_norm_that_is_watched_is_not_folded(models: dict[str, Segmenter]) -> None:
    seen: list[int] = []
    model: Any = models["sem-fpn"]
    handle = model.head.levels[0][0].norm.register_forward_hook(lambda *_: seen.append(1))
    try:
        fused = model.fuse()
    finally:
        handle.remove()
    assert not fused.goes_by_rows
    fused(torch.randn(1, 3, 32, 32))
    assert seen and fused.head.levels[0][0].norm.num_features == 16


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_kept(kind: str, tmp_path: Path) -> None:
    """Measures the peak memory in this process, for a model that needs most of its memory for maps."""
    config = SegmenterConfig(kind=cast(Any, kind), backbone=WIDE, num_classes=40, channels=96)
    model, reports = build_segmenter(config).eval().fuse(), list[Report]()
    bound = 120 * 10**6
    how = FullSize(memory=Budget(memory=bound, scratch=tmp_path), report=lambda _, report: reports.append(report))
    (result,) = segment_large_each([picture(128, 2048)], model, replace(INFO, class_names=()), how)
    assert large(result).labels().shape == (128, 2048)
    assert reports[0].peak_bytes is None or reports[0].peak_bytes < bound
