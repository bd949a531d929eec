"""Tests label maps of whole images, and of large images by a sliding window (compared with sums over all windows)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from xcit.data.segmentation_transforms import normalized, resized_pixels
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.inference import segment as segmenting
from xcit.inference.full_size import FullSize
from xcit.inference.reading import Unreadable
from xcit.inference.segment import Segmentation, SlidingWindow, predict_labels, segment, segment_each
from xcit.models import Segmenter, SegmenterConfig, SegmenterInfo, XCiTConfig, build_segmenter
from xcit.zoo import save_model

SPEC = SegmentationPreprocessing(long_side=80, short_side=40, mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = tuple(f"class {index}" for index in range(20))


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    backbone = XCiTConfig(
        patch_size=8, embed_dim=16, depth=2, num_heads=2, cls_depth=0, num_classes=0, global_pool="none"
    )
    config = SegmenterConfig(kind="sem-fpn", backbone=backbone, num_classes=20, channels=8, out_indices=(0, 0, 1, 1))
    built: Any = build_segmenter(config).eval()
    built.head.classifier.weight.data.normal_()
    built.info = SegmenterInfo(name="small", preprocessing=SPEC, class_names=NAMES)
    return built


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def test_the_published_way_of_a_whole_image(model: Segmenter) -> None:
    image = picture(61, 93)
    pixels = resized_pixels(image, SPEC)
    assert pixels.shape == (40, 61, 3)
    with torch.inference_mode():
        logits = model.fuse()(normalized(pixels, SPEC)[None])
        assert logits.shape == (1, 20, 40, 61)
        expected = F.interpolate(logits, (61, 93), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    (found,) = segment(image, model, device="cpu")
    assert found.labels.dtype == np.uint8
    assert len(np.unique(found.labels)) > 2
    assert np.array_equal(found.labels, expected.numpy())
    assert np.array_equal(found.image, np.asarray(image))
    areas = found.areas()
    assert sum(areas.values()) == pytest.approx(1)
    assert list(areas.values()) == sorted(areas.values(), reverse=True)
    assert set(areas) == {NAMES[index] for index in np.unique(found.labels)}


@pytest.mark.parametrize("size", [(70, 101), (32, 32), (20, 75), (33, 64)])
@pytest.mark.parametrize("strip", [2048, 40])
def test_windows_are_averaged(
    model: Segmenter, size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenting, "_STRIP", strip)
    pixels, window = np.asarray(picture(*size)), SlidingWindow(size=32, stride=20)
    image = normalized(pixels, SPEC)[None]
    (height, width), total, count = size, torch.zeros(1, 20, *size), torch.zeros(size)
    # The published loop over the windows.
    with torch.inference_mode():
        for i in range(max(height - 32 + 20 - 1, 0) // 20 + 1):
            for j in range(max(width - 32 + 20 - 1, 0) // 20 + 1):
                y2, x2 = min(i * 20 + 32, height), min(j * 20 + 32, width)
                y1, x1 = max(y2 - 32, 0), max(x2 - 32, 0)
                total[:, :, y1:y2, x1:x2] += model(image[:, :, y1:y2, x1:x2])
                count[y1:y2, x1:x2] += 1
    mean = total / count
    found = predict_labels(model, pixels, SPEC, size=size, window=window)
    agree = found == mean[0].argmax(dim=0).numpy()
    assert agree.mean() > 0.999  # the size of a batch of windows changes the rounding
    other = predict_labels(model, pixels, SPEC, size=(50, 60), window=window)
    expected = F.interpolate(mean, (50, 60), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    assert (other == expected.numpy()).mean() > 0.999


def test_memory_does_not_grow_with_the_image(model: Segmenter) -> None:
    window, device = SlidingWindow(size=16, stride=16), torch.device("cpu")
    pixels = np.zeros((160, 48, 3), np.uint8)
    with torch.inference_mode():
        parts = list(segmenting.slide(model, pixels, SPEC, window, device=device, dtype=torch.float32))
    assert [(part.top, part.left) for part in parts] == [(top, 0) for top in range(0, 160, 16)]
    assert {part.logits.shape for part in parts} == {torch.Size((20, 16, 48))}


def test_files_names_and_what_can_t_be_read(model: Segmenter, tmp_path: Path) -> None:
    picture(30, 44).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    Image.new("RGB", (3, 400)).save(tmp_path / "hair.png")
    save_model(model, tmp_path / "model.safetensors")
    paths = [tmp_path / name for name in ("a.png", "b.png", "hair.png")]
    good, bad, hair = segment_each(paths, tmp_path / "model.safetensors", device="cpu", full_size=FullSize())
    assert not isinstance(good, Unreadable)
    assert good.labels.shape == (30, 44)
    assert isinstance(bad, Unreadable)
    assert isinstance(hair, Unreadable)
    assert "hair.png: 3 x 400 pixels, smaller than one patch of 8 x 8" in hair.reason
    (hair,) = segment_each(
        paths[2:], tmp_path / "model.safetensors", device="cpu", full_size=FullSize(), window=SlidingWindow()
    )
    assert isinstance(hair, Unreadable)
    assert (
        "the model's input for an image of 3 x 400 pixels has 3 x 400 pixels: smaller than one patch of 8 x 8"
        in hair.reason
    )
    with pytest.raises(XCiTError, match="not an image that can be read"):
        segment(paths[1], model)
    assert [type(result) for result in segment(paths[:2], model)] == [Segmentation, Unreadable]


def test_what_is_no_segmenter(model: Segmenter) -> None:
    with pytest.raises(
        XCiTError, match="is for image-classification, not for semantic-segmentation: `xcit list --task"
    ):
        segment(picture(20, 20), "xcit-pico-fashion-mnist")
    bare = build_segmenter(model.config)
    with pytest.raises(XCiTError, match="it is not known how to prepare images"):
        segment(picture(20, 20), bare)
    with pytest.raises(XCiTError, match="a sliding window of 16 pixels can't move by 17"):
        SlidingWindow(size=16, stride=17)
