"""Tests scenes on disk, the errors for wrong scenes, and the use of scenes in training and evaluation."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.data.segmentation import IGNORED, LabelledScenes, Scene, open_scenes
from xcit.data.segmentation_transforms import SegmentationAugmentation, augmented_scene, normalized, resized_pixels
from xcit.errors import XCiTError
from xcit.images.preprocess import SegmentationPreprocessing

CLASSES = ("ground", "bag", "coat")


def write_scene(root: Path, image: str, label: str, values: np.ndarray, mode: str | None = None) -> None:
    for path in (root / image, root / label):
        path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(root / image)
    picture = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        picture.putpalette([7, 8, 9] * 256)
        assert picture.mode == "P"
    picture.save(root / label)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    values = np.array([[0, 1, 2], [255, 2, 2]])
    for split in ("train", "val"):
        write_scene(tmp_path, f"images/{split}/a.png", f"labels/{split}/a.png", values, mode="P")
        write_scene(tmp_path, f"images/{split}/more/b.jpg", f"labels/{split}/more/b.png", values[:1])
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return tmp_path


def test_a_plain_folder(plain: Path) -> None:
    scenes = open_scenes(str(plain), "val")
    assert (len(scenes), scenes.class_names) == (2, CLASSES)
    (image, labels), _ = scenes[0]
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert labels.tolist() == [[0, 1, 2], [255, 2, 2]]
    assert scenes[1][0].labels.tolist() == [[0, 1, 2]]
    assert scenes.image_name(1).endswith("b.jpg")


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_ade20k_says_zero_for_ignored(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    write_scene(root, "images/training/1.jpg", "annotations/training/1.png", np.array([[0, 1], [150, 7]]))
    scenes = open_scenes(str(tmp_path), "train")
    assert len(scenes.class_names) == 150
    assert scenes[0][0].labels.tolist() == [[IGNORED, 0], [149, 6]]
    with pytest.raises(XCiTError, match=r"images.validation: no such folder"):
        open_scenes(str(tmp_path), "val")


def test_labels_that_are_no_class_are_counted(plain: Path) -> None:
    Image.fromarray(np.array([[0, 9, 7], [9, 9, 1]], np.uint8)).save(plain / "labels/val/a.png")
    with pytest.raises(XCiTError) as error:
        open_scenes(str(plain), "val")[0]
    assert str(error.value) == (
        f"{plain / 'labels/val/a.png'}: 4 of 6 pixels have a label that is not a class: 7, 9; labels are 0 to 2, or 255"
    )
    scenes = LabelledScenes(open_scenes(str(plain), "val").items, ("one",), zero_is_ignored=True)
    with pytest.raises(XCiTError, match=r"not a class: 7, 9; labels are 0 \(ignored\) to 1"):
        scenes[0]


def test_another_size_is_an_error(plain: Path) -> None:
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(plain / "labels/val/a.png")
    with pytest.raises(XCiTError, match=r"the label map has 3 x 3 pixels, but the image a\.png has 3 x 2"):
        open_scenes(str(plain), "val")[0]


def test_colours_instead_of_numbers_are_an_error(plain: Path) -> None:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(plain / "labels/val/a.png")
    with pytest.raises(
        XCiTError, match=r"a\.png: a colour picture \(mode RGB\): a label image has one number per pixel"
    ):
        open_scenes(str(plain), "val")[0]
    Image.fromarray(np.full((2, 3), 700, np.uint16)).save(plain / "labels/val/a.png")
    with pytest.raises(XCiTError, match=r"labels are 700 to 700, but must be within 0\.\.255"):
        open_scenes(str(plain), "val")[0]


def test_missing_pairs_are_counted(plain: Path) -> None:
    (plain / "labels/val/more/b.png").unlink()
    with pytest.raises(XCiTError, match=r"1 of the 2 images in .* have no label map in .*; the first: more.b\.jpg"):
        open_scenes(str(plain), "val")


def test_what_is_no_data_set(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="no such folder; data must be the folder ADEChallengeData2016"):
        open_scenes(str(tmp_path / "none"), "val")
    (plain / "classes.txt").write_text("\n")
    with pytest.raises(XCiTError, match="0 classes, but must be 2 to 255"):
        open_scenes(str(plain), "val")
    (plain / "classes.txt").unlink()
    with pytest.raises(XCiTError, match=r"the folder has no classes\.txt"):
        open_scenes(str(plain), "val")


@pytest.mark.parametrize(
    "place", ["images/training", "images/valid", "train/images", "Data/images/train"], ids=lambda text: text
)
@pytest.mark.parametrize("kind", ["labels", "masks", "annotations"])
def test_other_names_of_the_folders(tmp_path: Path, place: str, kind: str) -> None:
    split = "val" if "valid" in place else "train"
    write_scene(tmp_path, f"{place}/a.png", f"{place.replace('images', kind)}/a.png", np.array([[0, 1, 2]]))
    root = tmp_path / "Data" if place.startswith("Data") else tmp_path
    (root / "classes.txt").write_text("ground\nbag\ncoat\n")
    scenes = open_scenes(str(tmp_path), split)  # type: ignore[arg-type]
    assert scenes[0][0].labels.tolist() == [[0, 1, 2]]
    assert scenes.describe() == f"3 classes: ground, bag, coat; 1 images in {tmp_path / place}"


def test_what_is_left_out_is_counted(plain: Path) -> None:
    assert open_scenes(str(plain), "val").problems == ()
    Image.new("L", (3, 2)).save(plain / "labels/val/more/z.png")
    (plain / "images/val/a.json").write_text("{}")
    (plain / "labels/val/a.mat").write_text("")
    assert open_scenes(str(plain), "val").problems == (
        f"{plain / 'labels/val'}: 1 label maps left out, because they have no image; the first: more/z",
        f"{plain / 'images/val'}: left out: 1 files without an image suffix: .json (1)",
        f"{plain / 'labels/val'}: left out: 1 files without an image suffix: .mat (1)",
    )


def masks(root: Path, **rows: list[int]) -> str:
    for name, row in rows.items():
        split = name.split("_")[0]
        write_scene(root, f"images/{split}/{name}.png", f"labels/{split}/{name}.png", np.array([row]))
    (root / "classes.txt").write_text("ground\nroad\n")
    return str(root)


def test_masks_of_0_and_255_have_two_classes(tmp_path: Path) -> None:
    data = masks(tmp_path, train_1=[0, 0, 0], train_2=[0, 255, 0], val_1=[255, 0, 255], val_2=[0, 0, 0])
    scenes = open_scenes(data, "val")
    assert [scenes[index][0].labels.tolist() for index in range(2)] == [[[1, 0, 1]], [[0, 0, 0]]]
    assert scenes.problems == (f"{tmp_path}/labels/val: its label maps are masks of 0 and 255: 255 means 'road'",)
    assert open_scenes(data, "train")[1][0].labels.tolist() == [[0, 1, 0]]
    # The ignored label may be 255 or, in a mask, the background.
    assert scenes.ignoring(255)[0][0].labels.tolist() == [[255, 0, 255]]
    assert scenes.ignoring(0)[0][0].labels.tolist() == [[1, 255, 1]]
    assert scenes.ignoring(None) is scenes


def test_label_maps_of_two_classes_are_no_masks(tmp_path: Path) -> None:
    data = masks(tmp_path, train_1=[0, 255, 0], train_2=[0, 1, 0], val_1=[255, 0, 255])
    for split in ("train", "val"):  # the training label maps determine the format of both splits
        scenes = open_scenes(data, split)
        assert not scenes.problems
        assert 255 in scenes[0][0].labels
    later = masks(tmp_path / "later", **{f"train_{number:03d}": [0, 255, 0] for number in range(60)})
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "later/labels/train/train_059.png")
    with pytest.raises(
        XCiTError, match=r"train_059\.png: it has pixels with label 1, but the first label maps of .* contain only 0"
    ):
        open_scenes(later, "train")[59]


def test_a_single_class_is_an_error(tmp_path: Path) -> None:
    data = masks(tmp_path, train_1=[0, 255, 0])
    (tmp_path / "classes.txt").write_text("road\n")
    with pytest.raises(
        XCiTError, match="1 classes, but must be 2 to 255, one name per line; if some pixels show none of your classes"
    ):
        open_scenes(data, "train")


# Scenes in training and evaluation


def scene(height: int, width: int) -> Scene:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, (height, width)).astype(np.uint8)
    return Scene(Image.fromarray(np.repeat(60 * labels[..., None], 3, axis=2)), labels)


def test_the_published_size_and_numbers() -> None:
    spec = SegmentationPreprocessing()
    pixels = resized_pixels(Image.new("RGB", (640, 480), (124, 116, 104)), spec)
    assert pixels.shape == (512, 683, 3)
    image = normalized(pixels, spec)
    assert image.shape == (3, 512, 683)
    expected = [(124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375]
    assert image[:, 5, 5].tolist() == pytest.approx(expected, abs=1e-6)
    grey = SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.5,), std=(0.5,))
    assert normalized(resized_pixels(Image.new("L", (30, 20), 255), grey), grey).tolist() == [[[1.0] * 30] * 20]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_and_labels_move_together(channels: int) -> None:
    spec = SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.0,) * channels, std=(1.0,) * channels)
    config = SegmentationAugmentation(scale=(1.0, 1.0), crop_size=16, distort=False)
    flipped = set()
    for seed in range(12):
        random.seed(seed)
        image, labels = augmented_scene(scene(24, 11), config, spec)
        assert (image.shape, labels.shape, labels.dtype) == ((channels, 16, 16), (16, 16), torch.uint8)
        inside = labels != IGNORED
        assert inside.sum() == 16 * 11
        torch.testing.assert_close(image[0][inside] * 255 / 60, labels[inside].float())
        assert not image[0][~inside].any()
        flipped.add(tuple(labels[0, :3].tolist()))
    assert len(flipped) > 6


def test_augmentation_follows_from_the_seed_and_stays_in_bounds() -> None:
    spec, config = SegmentationPreprocessing(long_side=80, short_side=40), SegmentationAugmentation(crop_size=32)
    seen = []
    for seed in (0, 0, *range(1, 30)):
        random.seed(seed)
        image, labels = augmented_scene(scene(60, 90), config, spec)
        assert image.isfinite().all()
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3, IGNORED}
        seen.append(image)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_crop_of_one_class_is_drawn_anew() -> None:
    labels = np.zeros((8, 400), np.uint8)
    labels[:, ::40] = 1
    labels[:, :8] = 0
    one = Scene(Image.fromarray(labels), labels)
    spec = SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.5,), std=(0.5,))

    def num_varied(max_class_share: float) -> int:
        config = SegmentationAugmentation(scale=(1.0, 1.0), crop_size=8, distort=False, max_class_share=max_class_share)
        count = 0
        for seed in range(60):
            random.seed(seed)
            count += len(augmented_scene(one, config, spec)[1].unique()) > 1
        return count

    assert num_varied(0.95) > 2 * num_varied(1.0)


@pytest.mark.parametrize(
    "wrong", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"crop_size": 0}, {"max_class_share": 0.0}, {"flip": 2.0}]
)
def test_impossible_augmentation(wrong: dict[str, float]) -> None:
    with pytest.raises(XCiTError, match=next(iter(wrong))):
        SegmentationAugmentation(**wrong)  # type: ignore[arg-type]
