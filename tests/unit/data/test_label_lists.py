"""Tests lists of images and their classes: as CSV or as plain lines, with and without a header line."""

from pathlib import Path

import pytest
from PIL import Image

from xcit.data.classification import has_validation, open_labelled_images, problems_of
from xcit.errors import XCiTError

EXPECTED = {"1.png": "dog", "2.png": "cat", "3.png": "dog"}


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def labels(data: Path, split: str = "train") -> dict[str, str]:
    images = open_labelled_images(str(data), split)  # type: ignore[arg-type]
    found = {Path(images.image_name(i)).name: images.class_ids[images[i][1]] for i in range(len(images))}
    assert len(found) == len(images)
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "file,label\n1.png,dog\n2.png,cat\n3.png,dog\n"),
        ("labels.csv", "1.png,dog\n2.png,cat\n3.png,dog\n"),
        ("labels.csv", "id,breed\n1,dog\n2,cat\n3,dog\n"),
        ("labels.csv", "class;photo\r\ndog;1.png\r\ncat;2.png\r\ndog;3.png\r\n"),
        (
            "train.csv",
            "\ufefffilename,width,height,class\nimages/1.png,4,4,dog\nimages/2.png,4,4,cat\n./3.png,4,4,dog\n",
        ),
        ("metadata.csv", "file_name,label\nimages\\1.png,dog\nimages\\2.png,cat\n3.png,dog\n"),
        ("labels.tsv", "image\tlabel\n1.png\tdog\n2.png\tcat\n3.png\tdog\n"),
        ("train.txt", "1.png dog\n\nimages/2.png   cat\n3.png dog\n"),
        ("meta/train.txt", "1.png dog\n2.png cat\n3.png dog\n"),
    ],
)
@pytest.mark.parametrize("folder", ["", "images"])
def test_lists_in_every_form(tmp_path: Path, name: str, text: str, folder: str) -> None:
    root = tmp_path / "images" if not folder else tmp_path
    write(tmp_path / "images", "1.png", "2.png", "3.png")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(text.encode())
    assert labels(root) == EXPECTED
    assert open_labelled_images(str(root), "train").class_ids == ("cat", "dog")
    assert not has_validation(str(root))


def test_lists_of_two_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "train/2.png", "val/3.png")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,dog\n2.png,cat\n3.png,dog\n")
    assert labels(tmp_path, "train") == {"1.png": "dog", "2.png": "cat"}
    assert labels(tmp_path, "val") == {"3.png": "dog"}
    assert has_validation(str(tmp_path))


def test_two_lists_of_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "train.csv").write_text("1.png,dog\n2.png,cat\n")
    (tmp_path / "val.csv").write_text("3.png,dog\n")
    assert labels(tmp_path, "train") == {"1.png": "dog", "2.png": "cat"}
    assert labels(tmp_path, "val") == {"3.png": "dog"}
    assert has_validation(str(tmp_path))


def test_numbers_are_in_their_order_or_lines_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number}.png" for number in range(11)))
    (tmp_path / "labels.txt").write_text("".join(f"{number}.png {number}\n" for number in range(11)))
    assert open_labelled_images(str(tmp_path), "train").class_ids == tuple(map(str, range(11)))
    (tmp_path / "classes.txt").write_text("".join(f"class{number}\n" for number in range(12)))
    assert labels(tmp_path)["10.png"] == "class10"
    assert len(open_labelled_images(str(tmp_path), "train").class_ids) == 12


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png", "a/3.png")
    (tmp_path / "train.csv").write_text("1.png,dog\n2.png,cat\n3.png,dog\n4.png,dog\n")
    path = tmp_path / "train.csv"
    assert labels(tmp_path) == {"1.png": "dog", "2.png": "cat", "3.png": "dog"}
    assert problems_of(open_labelled_images(str(tmp_path), "train")) == (
        f"{path}: 1 entries left out, because their name matches no image or several images in {tmp_path}: 4.png",
    )
    write(tmp_path, "5.png")
    assert problems_of(open_labelled_images(str(tmp_path), "train"))[1] == (
        f"{path}: 1 images of {tmp_path} left out, because they are not in the list: 5.png"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1.png,dog\n2.png,cat\n1.png,cat\n",
            r"1\.png has the class 'cat', but it has the class 'dog' in an earlier line",
        ),
        ("1.png,dog\n2.png\n", r"line 2: '2\.png' is not a file and a class"),
        ("1.png,dog\n2.png,\n", r"line 2: '2\.png,' has no file or no class"),
        ("when,where,what\n1,2,3\n", "which of the columns when, where, what have the file and the class"),
        ("file,label\n9.png,dog\n", r"none of its 1 images is in .*; the first: 9\.png"),
        ("alone\n", "has one column"),
        ("", "an empty list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(XCiTError, match=message):
        open_labelled_images(str(tmp_path), "train")


def test_a_class_that_no_file_names_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_text("1.png,fox\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(XCiTError, match="line 1: 'fox' is not one of the 2 classes"):
        open_labelled_images(str(tmp_path), "train")
