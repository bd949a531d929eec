"""Tests COCO files as Roboflow, CVAT and Label Studio write them, and photographs with an EXIF orientation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.data.coco import open_coco
from xcit.data.coco_places import has_annotations_of
from xcit.errors import XCiTError

SQUARE = [5.0, 5.0, 15.0, 5.0, 15.0, 13.0, 5.0, 13.0]


def box(number: Any, image: Any, category: Any, **fields: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": [5, 5, 10, 8], **fields}


def write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def test_roboflow(tmp_path: Path) -> None:
    root = tmp_path / "Garments.v1.coco"
    categories = [
        {"id": 0, "name": "garments", "supercategory": "none"},
        {"id": 1, "name": "coat", "supercategory": "garments"},
        {"id": 2, "name": "shoe", "supercategory": "garments"},
    ]
    for split in ("train", "valid", "test"):
        image = {"id": 0, "file_name": f"{split}_jpg.rf.1a.jpg", "height": 30, "width": 40}
        write(root / split / "_annotations.coco.json", [image], [box(0, 0, 2, segmentation=[SQUARE])], categories)
        picture(root / split / f"{split}_jpg.rf.1a.jpg")
    for split, folder in (("train", "train"), ("val", "valid")):
        found = open_coco(tmp_path, split)  # type: ignore[arg-type]
        assert found.source == root / folder / "_annotations.coco.json"
        # The project's name is no class.
        assert (found.class_names, found.category_ids) == (("coat", "shoe"), (1, 2))
        assert [one.label for one in found.images[0].objects] == [1]
        assert found.read(0).size == (40, 30)
        assert found.describe() == f"2 classes: coat, shoe; 1 images and 1 objects in {found.source}"
    assert has_annotations_of(str(tmp_path), "val")
    # The project's name is a class if objects have it.
    write(root / "valid" / "_annotations.coco.json", [image], [box(0, 0, 0)], categories)
    assert open_coco(root, "val").class_names == ("garments", "coat", "shoe")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_Train.json", "images/Train"),
        ("annotations/instances_train.json", "images/train"),
    ],
)
def test_cvat(tmp_path: Path, annotations: str, images: str) -> None:
    image = {"id": 1, "file_name": "more/a.png", "width": 40, "height": 30, "license": 0, "date_captured": 0}
    shape = box(1, 1, 1, segmentation=[], area=80.0, iscrowd=0, attributes={"occluded": False})
    write(tmp_path / annotations, [image], [shape], [{"id": 1, "name": "coat", "supercategory": ""}])
    picture(tmp_path / images / "more" / "a.png")
    found = open_coco(tmp_path, "train")
    assert found.images[0].path == tmp_path / images / "more" / "a.png"
    assert found.problems == ("1 objects have no mask: their box is used as the mask: annotation 1 of more/a.png",)
    assert not has_annotations_of(str(tmp_path), "val")
    if "default" in annotations:
        assert len(open_coco(tmp_path, "val")) == 1


@pytest.mark.parametrize(
    "name", ["images/0a-b.png", "images\\0a-b.png", "../../label-studio/media/upload/1/0a-b.png", "0a-b.png"]
)
def test_label_studio(tmp_path: Path, name: str) -> None:
    image = {"width": 40, "height": 30, "id": 0, "file_name": name}
    shape = box(0, 0, 0, segmentation=[SQUARE], ignore=0, iscrowd=0, area=80)
    write(tmp_path / "result.json", [image], [shape], [{"id": 0, "name": "Coat"}, {"id": 1, "name": "Shoe"}])
    picture(tmp_path / "images" / "0a-b.png")
    found = open_coco(tmp_path, "train")
    assert found.images[0].path == tmp_path / "images" / "0a-b.png"
    assert found.class_names == ("Coat", "Shoe")
    assert len(found.images[0].objects) == 1 and found.problems == ()


@pytest.mark.parametrize(
    ("image", "image_again", "category", "category_again"),
    [("7", 7, "2", "2"), ("a1b2", "a1b2", "coat-id", "coat-id"), (3.0, 3, 2.0, "2"), ("007", "007", 1, 1)],
)
def test_ids_may_be_text(tmp_path: Path, image: Any, image_again: Any, category: Any, category_again: Any) -> None:
    images = [
        {"id": image, "file_name": "a.png", "height": 30, "width": 40},
        {"id": "other", "file_name": "b.png", "height": 30, "width": 40},
        {"id": image_again, "file_name": "c.png", "height": 30, "width": 40},
    ]
    shapes = [box("x", image_again, category_again), box("y", "other", category), box("z", "neither", category)]
    write(tmp_path / "all.json", images, shapes, [{"id": "zero", "name": "shoe"}, {"id": category, "name": "coat"}])
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    found = open_coco(tmp_path / "all.json", "val")
    assert [[one.label for one in image.objects] for image in found.images] == [[1], [1]]
    assert len({image.id for image in found.images}) == 2
    assert [line.partition(":")[0] for line in found.problems] == [
        "1 images left out, because another image has the same id",
        "2 objects have no mask",
        "1 annotations left out, because no image has their image_id",
    ]
    # In a detector's file, category ids are integers.
    assert found.category_ids == ((2, 1) if category == 1 else (1, 2))


@pytest.mark.parametrize("size", [{}, {"height": None, "width": None}, {"height": 30.0, "width": "40"}, {"width": 40}])
def test_sizes_may_be_missing_or_floats(tmp_path: Path, size: dict[str, Any]) -> None:
    write(tmp_path / "all.json", [{"id": 1, "file_name": "a.png", **size}], [box(1, 1, 1)], [{"id": 1, "name": "coat"}])
    picture(tmp_path / "a.png")
    found = open_coco(tmp_path / "all.json", "val")
    assert found.images[0].size == (30, 40)
    assert len(found.images[0].objects) == 1
    assert found.read(0).size == (40, 30)


def test_why_images_are_left_out_is_said(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": -3, "width": 40}, {"id": 2, "height": 30, "width": 40}]
    write(tmp_path / "all.json", images, [], [{"id": 1, "name": "coat"}])
    with pytest.raises(XCiTError) as error:
        open_coco(tmp_path / "all.json", "val")
    assert "none of its 0 images is in" in str(error.value)
    assert "\n  1 images left out, because height or width is not a number of pixels: {'id': 1" in str(error.value)
    assert "\n  1 images left out, because they have no id or no file_name: {'id': 2" in str(error.value)
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "height": 30, "width": 40}]
    write(tmp_path / "all.json", images, [box(5, 1, 1)], [{"id": 1, "name": "coat"}])
    (tmp_path / "a.png").write_text("no picture")
    picture(tmp_path / "b.png")
    first, second = open_coco(tmp_path / "all.json", "val").problems
    assert first.startswith("1 images left out, because neither the JSON nor the image file gives a size")
    assert second == "1 annotations left out, because their image is left out: annotation 5 of a.png"


def test_a_degenerate_polygon_costs_itself(tmp_path: Path) -> None:
    shapes = [
        box(1, 1, 1, segmentation=[[1, 2, 3, 4], SQUARE, [1, 2, 3, 4, 5]]),
        box(2, 1, 1, segmentation=[[1, 2, 3, 4]]),
        box(3, 1, 1, segmentation=SQUARE),
    ]
    write(tmp_path / "a.json", [{"id": 1, "file_name": "a.png"}], shapes, [{"id": 1, "name": "coat"}])
    picture(tmp_path / "a.png")
    found = open_coco(tmp_path / "a.json", "val")
    objects = found.images[0].objects
    assert found.masks(0, objects).sum(axis=(1, 2)).tolist() == [80, 80]
    assert [one.area for one in objects] == [80, 80]
    assert found.problems == (
        "1 masks used without their invalid polygons: annotation 1 of a.png: 2 of 3",
        "1 annotations left out, because their mask is invalid: annotation 2 of a.png: a polygon of 4 numbers: it "
        "needs three or more points of two numbers each",
    )


@pytest.mark.parametrize("orientation", [3, 6])
def test_boxes_that_were_drawn_on_stored_pixels(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[5:13, 5:15] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = {"id": 1, "file_name": "a.png", "height": 30, "width": 40}
    write(tmp_path / "a.json", [image], [box(1, 1, 1)], [{"id": 1, "name": "coat"}])
    stored = open_coco(tmp_path / "a.json", "val", ignore_exif=True)
    assert (np.asarray(stored.read(0)) == pixels).all()
    turned = open_coco(tmp_path / "a.json", "val")
    if orientation == 6:
        with pytest.raises(
            XCiTError, match=r"is 30 x 40 pixels, but 40 x 30 in .*; the sizes agree with ignore_exif true"
        ):
            turned.read(0)
        write(tmp_path / "a.json", [{"id": 1, "file_name": "a.png"}], [box(1, 1, 1)], [{"id": 1, "name": "coat"}])
        assert open_coco(tmp_path / "a.json", "val").images[0].size == (40, 30)
        assert open_coco(tmp_path / "a.json", "val", ignore_exif=True).images[0].size == (30, 40)
    else:
        assert (np.asarray(turned.read(0)) == pixels[::-1, ::-1]).all()
