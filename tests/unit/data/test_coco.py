"""Tests data in COCO's format: the values that are read, the paths that are tried, and the errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.data.coco import open_coco
from xcit.errors import XCiTError


def content() -> dict[str, Any]:
    """Writes three images of 40 x 30 pixels (the last has no objects) and annotations with unusual category ids."""
    return {
        "images": [
            {"id": 10 + index, "file_name": f"{name}.png", "height": 30, "width": 40}
            for index, name in enumerate(("a", "b", "c"))
        ],
        "categories": [{"id": 7, "name": "shoe"}, {"id": 3, "name": "coat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 10,
                "category_id": 3,
                "bbox": [5, 5, 10, 8],
                "area": 80,
                "iscrowd": 0,
                "segmentation": [[5, 5, 15, 5, 15, 13, 5, 13]],
            },
            {
                "id": 2,
                "image_id": 10,
                "category_id": 7,
                "bbox": [0, 0, 40, 30],
                "area": 1200,
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [0, 1200]},
            },
            {
                "id": 3,
                "image_id": 11,
                "category_id": 7,
                "bbox": [35, 20, 20, 30],
                "segmentation": [[35, 20, 39, 20, 39, 29]],
            },
        ],
    }


def write(root: Path, values: dict[str, Any], annotations: str, images: str) -> Path:
    path = root / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    (root / images).mkdir(parents=True, exist_ok=True)
    for entry in values["images"]:
        if isinstance(entry, dict) and "file_name" in entry:
            Image.new("RGB", (40, 30), "white").save(root / images / entry["file_name"])
    return path


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/val.json", "images/val"),
        ("annotations/instances_val.json", "images"),
        ("val/_annotations.coco.json", "val"),
        ("val.json", "val"),
    ],
)
def test_where_things_are(tmp_path: Path, annotations: str, images: str) -> None:
    path = write(tmp_path, content(), annotations, images)
    for data in (tmp_path, path):
        found = open_coco(data, "val")
        assert len(found) == 3 and found.images[0].path == tmp_path / images / "a.png"
        assert found.source == path and found.problems == ()
    assert len(open_coco(path, "train")) == 3
    with pytest.raises(XCiTError, match=r"no annotations of the split 'train': expected .*instances_train2017\.json"):
        open_coco(tmp_path, "train")


def test_what_is_read(tmp_path: Path) -> None:
    write(tmp_path, content(), "annotations/val.json", "val")
    found = open_coco(tmp_path, "val")
    assert (found.class_names, found.category_ids) == (("shoe", "coat"), (7, 3))
    assert [image.id for image in found.images] == [10, 11, 12]
    coat, crowd = found.images[0].objects
    assert (coat.label, coat.box, coat.area, coat.is_crowd, coat.is_trainable) == (1, (5, 5, 10, 8), 80, False, True)
    assert (crowd.label, crowd.is_crowd, crowd.is_trainable) == (0, True, False)
    # The values have Python's number types, so that they can be converted to tensors and JSON.
    fields = (found.images[0].id, *found.images[0].size, coat.label, *coat.box, coat.area, coat.is_crowd)
    assert [type(value) for value in fields] == [int, int, int, int, float, float, float, float, float, bool]
    (shoe,) = found.images[1].objects
    # A box may be partly outside of the image. If the file gives no area, the mask's area is used.
    assert shoe.is_trainable and 10 < shoe.area < 40
    assert found.images[2].objects == ()
    masks = found.masks(0, found.images[0].objects)
    assert masks.shape == (2, 30, 40) and masks.dtype == np.uint8 and masks.sum(axis=(1, 2)).tolist() == [80, 1200]
    assert found.masks(2, ()).shape == (0, 30, 40)
    assert found.read(0).size == (40, 30)


def test_every_bad_entry_is_named_and_counted_and_costs_no_other(tmp_path: Path) -> None:
    values = content()
    good = values["annotations"][0]
    values["annotations"] += [
        good | {"id": 20, "bbox": [50, 40, 10, 10]},
        good | {"id": 21, "bbox": [-20, 5, 10, 10]},
        good | {"id": 22, "bbox": [5, 5, 0, 8]},
        good | {"id": 23, "category_id": 99},
        good | {"id": 24, "image_id": 77},
        good | {"id": 25, "segmentation": {"size": [30, 40], "counts": "oh no"}},
        good | {"id": 26, "segmentation": {"size": [30, 40], "counts": [7]}},
        good | {"id": 27, "bbox": [1, 2, 3]},
        good | {"id": 28, "bbox": [1, 2, 3, float("nan")]},
        good | {"id": 29, "segmentation": None},
        "nonsense",
    ]
    values["images"] += [
        {"id": 30, "file_name": "gone.png", "height": 30, "width": 40},
        {"id": 10, "file_name": "a.png", "height": 30, "width": 40},
        {"file_name": "no-id.png"},
    ]
    write(tmp_path, values, "annotations/val.json", "val")
    (tmp_path / "val" / "gone.png").unlink()
    found = open_coco(tmp_path, "val")
    lines = sorted(found.problems)
    assert [line.partition(":")[0] for line in lines] == [
        "1 annotations left out, because no category has their category_id",
        "1 annotations left out, because no image has their image_id",
        "1 annotations left out, because they are not JSON objects",
        "1 images left out, because another image has the same id",
        "1 images left out, because the file does not exist",
        "1 images left out, because they have no id or no file_name",
        "1 objects are not trained on, because a side of their box is shorter than a pixel",
        "1 objects have no mask",
        "2 annotations left out, because bbox is not four finite numbers",
        "2 annotations left out, because their mask is invalid",
        "2 objects are not trained on, because their box is outside the image",
    ]
    assert "annotation 25 of a.png: its packed counts are cut off or invalid; annotation 26" in lines[9]
    assert "gone.png" in lines[4]
    assert all("\n" not in line for line in lines)
    # All correct images are read. Objects that can't be used for training are read too.
    assert len(found) == 3
    assert sum(one.is_trainable for one in found.images[0].objects) == 2
    assert len(found.images[0].objects) == 6
    assert len(found.images[1].objects) == 1


def test_a_line_names_three_of_many(tmp_path: Path) -> None:
    values = content()
    values["annotations"] = [values["annotations"][0] | {"id": number, "category_id": 0} for number in range(50)]
    write(tmp_path, values, "annotations/val.json", "val")
    (line,) = open_coco(tmp_path, "val").problems
    assert line.startswith("50 annotations") and line.endswith("; ...") and line.count("a.png") == 3


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path, content(), "annotations/val.json", "val")
    Image.new("RGB", (30, 40)).save(tmp_path / "val" / "b.png")
    with pytest.raises(XCiTError, match=r"b\.png: the picture is 30 x 40 pixels, but 40 x 30 in"):
        open_coco(tmp_path, "val").read(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a JSON file"),
        ("[]", "must have the lists 'images' and 'categories'"),
        ('{"images": [], "categories": {}}', "must have the lists"),
        ('{"images": [], "categories": []}', "it has no categories"),
        ('{"images": [], "categories": [{"id": 1}]}', "a category needs"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "have the id 1"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": 3}', "'annotations' is not a list"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}]}', "none of its 0 images"),
    ],
)
def test_files_that_are_not_cocos_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(XCiTError, match=words) as error:
        open_coco(path, "val")
    assert str(path) in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(XCiTError, match="no such folder or file"):
        open_coco(tmp_path / "nowhere", "val")


def test_a_file_without_objects_and_images_after_their_objects(tmp_path: Path) -> None:
    values = content()
    late = {key: values[key] for key in ("annotations", "categories", "images")}
    late["annotations"] = late["annotations"][::-1]
    write(tmp_path, late, "annotations/train.json", "train")
    write(tmp_path, values | {"annotations": []}, "annotations/val.json", "val")
    train, val = open_coco(tmp_path, "train"), open_coco(tmp_path, "val")
    assert [[one.label for one in image.objects] for image in train.images] == [[0, 1], [0], []]
    assert [image.objects for image in val.images] == [(), (), ()]
    assert train.images.num_trainable().tolist() == [1, 1, 0] and val.images.num_trainable().tolist() == [0, 0, 0]


def test_objects_of_images_that_are_not_there_are_no_one_elses(tmp_path: Path) -> None:
    write(tmp_path, content(), "annotations/val.json", "val")
    (tmp_path / "val" / "a.png").unlink()
    found = open_coco(tmp_path, "val")
    assert [(image.path.name, [one.box for one in image.objects]) for image in found.images] == [
        ("b.png", [(35, 20, 20, 30)]),
        ("c.png", []),
    ]
    assert found.images[-1].id == 12
    with pytest.raises(IndexError):
        found.images[2]


def test_names_and_masks_are_as_the_file_has_them(tmp_path: Path) -> None:
    values = content()
    values["images"][0]["file_name"] = "ünï 漢字 😀.png"
    polygon = [5.123456789, 5.1, 15.000001, 5, 15, 13.7]
    values["annotations"][0]["segmentation"] = [polygon, polygon[::-1]]
    values["annotations"][2]["segmentation"] = []
    write(tmp_path, values, "annotations/val.json", "val")
    found = open_coco(tmp_path, "val")
    assert found.images[0].path == tmp_path / "val" / "ünï 漢字 😀.png"
    assert found.images[0].objects[0].segmentation == [polygon, polygon[::-1]]
    assert found.images[0].objects[1].segmentation == {"size": [30, 40], "counts": [0, 1200]}
    assert found.images[1].objects[0].segmentation == [[35, 20, 55, 20, 55, 50, 35, 50]]


def test_objects_are_in_arrays_no_larger_than_twice_the_file(tmp_path: Path) -> None:
    """Forked processes share the memory of arrays.

    They do not share the memory of Python objects: using an object changes its reference count, so its memory is
    copied.
    """
    values = content()
    first = values["annotations"][0]
    values["annotations"] = [
        first | {"id": number, "image_id": 10 + number % 3, "segmentation": [list(range(5, 5 + 2 * (number % 40 + 3)))]}
        for number in range(2000)
    ]
    path = write(tmp_path, values, "annotations/val.json", "val")
    found = open_coco(tmp_path, "val")
    state = {name: value for name, value in vars(found.images).items() if name != "folder"}
    assert state and all(isinstance(value, np.ndarray) and not value.dtype.hasobject for value in state.values())
    assert sum(value.nbytes for value in state.values()) <= 2 * path.stat().st_size
    assert sum(len(image.objects) for image in found.images) == 2000
    assert [one.segmentation for one in found.images[1].objects[:2]] == [
        values["annotations"][number]["segmentation"] for number in (1, 4)
    ]
