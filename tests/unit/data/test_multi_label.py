"""Tests lists of images with several classes each, in both file formats, and the one-line errors for wrong lists."""

from pathlib import Path

import pytest
from PIL import Image

from xcit.data.multi_label import has_validation_list, open_multi_label
from xcit.errors import XCiTError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index, name in enumerate(("a", "b", "ü c")):
        Image.new("RGB", (4, 4), (index,) * 3).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(root: Path, text: str, name: str = "train.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


NAMES = "image,labels\nimages/a.png,dog cat\nimages/b.png,\n\nimages/ü c.png,dog\n"
COLUMNS = "\ufefffile,dog,traffic light\nimages/a.png,1,0\nimages/b.png,0,0\nimages/ü c.png, 1.0 ,1\n"


def test_names_with_spaces_between_them(root: Path) -> None:
    write(root, NAMES)
    images = open_multi_label(str(root), "train")
    assert images.class_ids == ("cat", "dog")
    assert images.targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    for row in range(3):
        picture, label = images[row]
        assert (picture.getpixel((0, 0)), label) == ((row,) * 3, row)
    assert images.image_name(2) == str(root / "images" / "ü c.png")


def test_a_column_for_each_class(root: Path) -> None:
    images = open_multi_label(str(write(root, COLUMNS, "any.csv")), "val")
    assert images.class_ids == ("dog", "traffic light")
    assert images.targets.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_the_validation_list_has_the_classes_of_the_training_list(root: Path) -> None:
    write(root, NAMES)
    assert len(open_multi_label(str(root), "val")) == 3
    assert not has_validation_list(str(root))
    write(root, "image,labels\nimages/b.png,dog\n", "val.csv")
    assert has_validation_list(str(root))
    val = open_multi_label(str(root), "val", class_ids=("cat", "dog"))
    assert (val.class_ids, val.targets.tolist()) == (("cat", "dog"), [[0, 1]])
    write(root, "image,labels\nimages/b.png,dog bird\n", "val.csv")
    with pytest.raises(XCiTError, match=r"val\.csv: 'bird' is not among the 2 known classes"):
        open_multi_label(str(root), "val", class_ids=("cat", "dog"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not a list of images: data must be a CSV file"),
        ("image,labels\n", r"not a list of images"),
        ("image\nimages/a.png\n", r"not a list of images"),
        ("image,labels\nimages/a.png,dog,cat\n", r"line 2: 3 columns, but the first line names 2"),
        ("image,dog,cat\n\nimages/a.png,1,yes\n", r"line 3: cat is 'yes', but must be 0 or 1"),
        ("image,dog,dog\nimages/a.png,1,1\n", r"two columns have the same name"),
        ("image,labels\nimages/a.png,\n", r"no image has a class"),
        ("image,labels\nimages/x.png,dog\n", r"1 of its 1 images do not exist; the first: .*x\.png"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(root: Path, text: str, message: str) -> None:
    path = write(root, text)
    with pytest.raises(XCiTError, match=message) as caught:
        open_multi_label(str(path), "train")
    assert str(path) in str(caught.value)


def test_a_missing_list_is_named(root: Path) -> None:
    with pytest.raises(XCiTError, match=r"train\.csv: no such file; data must be a CSV file, or a folder"):
        open_multi_label(str(root), "train")
    (root / "train.csv").write_bytes(b"image,labels\n\xff\xfe,dog\n")
    with pytest.raises(XCiTError, match=r"train\.csv: can't be read"):
        open_multi_label(str(root), "train")
