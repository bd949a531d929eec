"""Tests detections in images from any kind of source, and the pictures of detections."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference

import xcit
from xcit.data.coco_masks import decode_mask, decode_part, encode_mask
from xcit.errors import XCiTError
from xcit.inference.detect import DetectedObject, DetectedObjects, _small_mask, detect, detect_each, detected_objects
from xcit.inference.reading import Unreadable
from xcit.models import XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.detection.mask_rcnn import MaskRCNN
from xcit.models.detection.roi_heads import Detections
from xcit.zoo import save_model


@pytest.fixture(scope="module", params=[3, 1])
def model(request: pytest.FixtureRequest) -> MaskRCNN:
    """Detectors for RGB and for grey images."""
    channels = request.param
    backbone = XCiTConfig(
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        cls_depth=0,
        num_classes=0,
        global_pool="none",
        in_channels=channels,
    )
    torch.manual_seed(0)
    built = MaskRCNN(
        MaskRCNNConfig(
            backbone=backbone,
            num_classes=3,
            channels=8,
            box_features=16,
            short_side=64,
            long_side=96,
            mean=(0.5,) * channels,
            std=(0.2,) * channels,
        )
    ).eval()
    built.roi_heads.box_predictor.cls_score.weight.data.mul_(30)
    built.info = DetectorInfo(name="three", class_names=("cat", "dog", "cow"))
    return built


def test_images_of_every_kind(model: MaskRCNN, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    save_model(model, tmp_path / "model.safetensors")
    by_path = detect(tmp_path / "a.png", tmp_path / "model.safetensors", min_score=0.2, device="cpu")[0]
    by_array = xcit.detect([pixels], model, min_score=0.2)[0]
    assert by_path.source == str(tmp_path / "a.png") and by_array.source == "image 0"
    assert np.array_equal(by_path.image, pixels)
    assert by_path.objects == by_array.objects and by_path.objects
    for one in by_path.objects:
        assert one.score > 0.2 and one.name == ("cat", "dog", "cow")[one.label - 1]
        mask = decode_mask(one.mask, (50, 70))
        x, y, width, height = one.box
        outside = np.ones((50, 70), bool)
        outside[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1] = False
        assert not mask[outside].any()
    assert len(detect(pixels, model, min_score=0.9)[0].objects) <= len(by_array.objects)
    # The results equal the results of `model.detect`, except for the rounding of the fused backbone.
    channels = model.config.backbone.in_channels
    picture = pixels if channels == 3 else np.array(Image.fromarray(pixels).convert("L"))[..., None]
    found = model.detect(torch.from_numpy(picture.transpose(2, 0, 1).copy()), min_score=0.2)
    np.testing.assert_allclose([one.score for one in by_array.objects][:5], found.scores[:5].numpy(), atol=1e-4)


def test_sizes(model: MaskRCNN) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    full = detect(pixels, model, min_score=0.0, full_size=True)[0].objects
    own = detect(pixels, model, min_score=0.0, sides=(90, 130))[0].objects
    assert [one.label for one in full] == [one.label for one in own]
    for one, other in zip(full, own, strict=True):
        assert one.box == pytest.approx(other.box, abs=1e-3) and one.score == pytest.approx(other.score, abs=1e-5)
    assert full != detect(pixels, model, min_score=0.0)[0].objects


def test_what_can_not_be_read_is_in_its_place(model: MaskRCNN, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_text("nothing")
    pixels = np.zeros((40, 40, 3), np.uint8)
    found = list(detect_each([tmp_path / "b.png", pixels], model))
    assert isinstance(found[0], Unreadable) and isinstance(found[1], DetectedObjects)
    with pytest.raises(XCiTError, match=r"b\.png"):
        detect(tmp_path / "b.png", model)


def test_mistakes(model: MaskRCNN) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(XCiTError, match="min_score is 2, but must be in"):
        detect(pixels, model, min_score=2)
    with pytest.raises(XCiTError, match="short side of 50 and a long side of 20"):
        detect(pixels, model, sides=(50, 20))
    with pytest.raises(XCiTError, match="packaged is for image-classification, not for object-detection"):
        detect(pixels, "packaged")


def test_a_mask_is_where_half_is_likely() -> None:
    masks = torch.zeros(1, 28, 28)
    masks[:, :, 14:] = 0.9
    found = Detections(torch.tensor([[10.0, 5, 38, 33]]), torch.tensor([2]), torch.tensor([0.7]), masks)
    (one,) = detected_objects(found, (40, 60))
    assert (one.label, one.name, one.box) == (2, "2", (10, 5, 28, 28))
    mask = decode_mask(one.mask, (40, 60))
    expected = np.zeros((40, 60), np.uint8)
    expected[5:33, 24:38] = 1
    assert np.array_equal(mask, expected)


def test_a_picture_shows_mask_box_and_name() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    mask = np.zeros((240, 320), np.uint8)
    mask[50:90, 40:100] = 1
    one = DetectedObject(label=1, name="cat", score=0.9, box=(40, 50, 60, 40), mask=encode_mask(mask))
    edge = DetectedObject(label=2, name="a very long name", score=0.5, box=(310, 0, 10, 5), mask=encode_mask(0 * mask))
    result = DetectedObjects(source="x", image=image, size=(240, 320), objects=(one, edge))
    picture = np.asarray(result.picture())
    assert picture.shape == image.shape
    changed = (picture != 128).any(axis=2)
    assert changed[70, 70] and changed[50, 60] and changed[45, 45] and not changed[110, 20]
    assert np.array_equal(image, np.full((240, 320, 3), 128, np.uint8))
    nothing = DetectedObjects(source="x", image=image, size=(240, 320), objects=())
    assert np.array_equal(np.asarray(nothing.picture()), image)


def test_a_large_image_is_shown_small(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    monkeypatch.setattr("xcit.inference.detect.OVERVIEW_PIXELS", 90 * 130 // 9)
    (found,) = detect(pixels, model, min_score=0.2, full_size=True, memory="1GB")
    assert isinstance(found, DetectedObjects)
    assert (found.size, found.scale, found.image.shape) == ((90, 130), 3, (30, 44, 3)) and found.objects
    times = np.asarray(found.picture()).shape[0] // 30
    assert np.asarray(found.picture()).shape == (30 * times, 44 * times, 3)
    whole = decode_mask(found.objects[0].mask, (90, 130))
    expected = np.zeros((30, 44), np.uint8)
    expected[:, :43] = whole[1::3, 1::3]
    assert np.array_equal(_small_mask(decode_part(found.objects[0].mask), (30, 44), 3), expected)
    assert not found.is_placed


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # NumPy 2 on pycocotools
def test_packed_masks_are_pycocotools(model: MaskRCNN) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    (found,) = detect(pixels, model, min_score=0.2, full_size=True)
    assert isinstance(found, DetectedObjects) and found.objects
    for one in found.objects:
        rle = {"size": one.mask["size"], "counts": one.mask["counts"].encode()}
        mask = reference.decode(rle)
        assert np.array_equal(mask, decode_mask(one.mask, (90, 130)))
        again = reference.encode(np.asfortranarray(mask))
        assert again["counts"].decode() == one.mask["counts"]


def test_polygons_enclose_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    mask[15:20, 30:40] = 0  # a hole
    mask[32:35, 22:25] = 1  # a second part
    one = DetectedObject(label=1, name="cat", score=0.9, box=(20, 10, 30, 25), mask=encode_mask(mask))
    polygons = sorted(one.polygons(), key=lambda polygon: polygon[0][0][1])
    assert [len(polygon) for polygon in polygons] == [2, 1]
    assert set(polygons[0][0]) == {(20, 10), (50, 10), (50, 30), (20, 30)}
    assert set(polygons[0][1]) == {(30, 15), (40, 15), (40, 20), (30, 20)}
    assert set(polygons[1][0]) == {(22, 32), (25, 32), (25, 35), (22, 35)}
    nothing = DetectedObject(label=1, name="cat", score=0.9, box=(0, 0, 1, 1), mask=encode_mask(0 * mask))
    assert nothing.polygons() == []


def test_too_many_pixels_for_packed_masks(model: MaskRCNN) -> None:
    class Huge:
        height, width, channels = 2**17, 2**16, 3

        def read(self, start: int, end: int) -> np.ndarray:
            raise AssertionError

    with pytest.raises(
        XCiTError, match="the image: 65536 x 131072 pixels, but a mask in COCO's format can have at most 4,294,967,295"
    ):
        detect(cast(Any, Huge()), model, full_size=True)
