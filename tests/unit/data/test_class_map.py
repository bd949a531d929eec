"""Tests class maps, which map names in the data to classes: all file formats, and their effect on the labels."""

from pathlib import Path

import pytest
from PIL import Image

from xcit.data.class_map import numbered, read_class_map
from xcit.data.classification import LabelledImages, describe_classes, open_labelled_images
from xcit.errors import XCiTError
from xcit.training.tasks.labelled_data import open_data, open_measured


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name / "1.png")


def by_folder(images: LabelledImages) -> dict[str, str]:
    """Returns the class of the image in each folder."""
    found = {}
    for index in range(len(images)):
        found[Path(images.image_name(index)).parent.name] = images.class_ids[images[index][1]]
    return found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"n01440764": 0, "tench": "0", "b c": "goldfish"}'),
        ("map.csv", "folder,class\nn01440764,0\ntench,0\nb c,goldfish\n"),
        ("map.csv", "n01440764,0\ntench,00\n\nb c,goldfish\n"),
        ("map.csv", "\ufeffName;Index\nn01440764;0\ntench;0\nb c;goldfish\n"),
        ("map.tsv", "n01440764\t0\ntench\t0\nb c\tgoldfish\n"),
        ("map.txt", "n01440764 0\ntench 0\nb c goldfish\n"),
    ],
)
def test_files_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_map(tmp_path / name).class_of == {"n01440764": "0", "tench": "0", "b c": "goldfish"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,x\nb,y\na,z\n", "a.csv, line 3: 'a' has two classes: 'x' and 'z'"),
        ("a.csv", "a,x\nb,\n", "a.csv, line 2: a name or its class is missing"),
        ("a.csv", "a,x\nb,y,z\n", "a.csv, line 2: 'b,y,z' must be a name and a class"),
        ("a.csv", "a\n", "has one column: expected two"),
        ("a.csv", "\n", "a.csv: an empty class map"),
        ("a.csv", "name,class\n", "a.csv: an empty class map"),
        ("a.json", "[1]", "a.json: a class map must be a JSON object that maps names in the data to classes"),
        ("a.json", '{"a": 1', "a.json: not a JSON file: Expecting ',' delimiter"),
        ("a.json", "[" * 100_000, "a.json: not a JSON file: maximum recursion"),
        ("a.json", '{"a": ["n01440764", "tench"]}', "a.json: the class of 'a' must be a name or an index"),
        ("a.json", '{"a": true}', "must be a name or an index"),
        ("a.json", '{"a": -1}', "a.json: a name or its class is missing"),
        ("a.json", "{}", "a.json: an empty class map"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(XCiTError) as error:
        read_class_map(tmp_path / name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_is_said() -> None:
    for path, reason in (("nowhere.csv", "No such file"), ("/dev/zero", "not a regular file"), ("/", "Is a directory")):
        with pytest.raises(XCiTError, match=f"{path}: the class map can't be read: {reason}"):
            read_class_map(path)


def test_several_folders_may_mean_one_class(tmp_path: Path) -> None:
    write(tmp_path / "train", "husky", "beagle", "manx")
    write(tmp_path / "val", "hounds")
    path = tmp_path / "map.csv"
    path.write_text("manx,cat\nhusky,dog\nbeagle,dog\nhounds,dog\nnever seen,horse\n")
    opened = open_data(str(tmp_path), val_data="", holdout=0, num_classes=0, class_map=str(path))
    train: LabelledImages = opened.train  # type: ignore[assignment]
    watched: LabelledImages = opened.watched  # type: ignore[assignment]
    assert train.class_ids == watched.class_ids == ("cat", "dog")
    assert by_folder(train) == {"husky": "dog", "beagle": "dog", "manx": "cat"}
    assert by_folder(watched) == {"hounds": "dog"}
    assert opened.notes[0] == f"found 2 classes: cat, dog; 3 images in {tmp_path / 'train'}, classes by {path}"
    assert opened.problems == (f"{tmp_path}: no validation images for 1 of the 2 classes: 'cat'",)
    assert by_folder(open_measured(str(tmp_path), 0, str(path))) == {"hounds": "dog"}


def test_numbers_are_the_models_classes(tmp_path: Path) -> None:
    write(tmp_path, "tench", "ostrich")
    (tmp_path / "map.json").write_text('{"tench": 10, "ostrich": 9}')
    for num_classes, count in ((0, 11), (1000, 1000)):
        opened = open_data(
            str(tmp_path), val_data="", holdout=0, num_classes=num_classes, class_map=str(tmp_path / "map.json")
        )
        train: LabelledImages = opened.train  # type: ignore[assignment]
        assert len(train.class_ids) == count
        assert {train.image_name(index).split("/")[-2]: train[index][1] for index in range(2)} == {
            "tench": 10,
            "ostrich": 9,
        }
    images = read_class_map(tmp_path / "map.json").apply(open_labelled_images(str(tmp_path), "train"))
    assert images.class_ids == ("9", "10") and describe_classes(images).startswith("2 classes: 9, 10; 2 images in ")
    with pytest.raises(XCiTError, match=r"m: class 10 does not exist: the model's 10 classes are numbered from 0"):
        numbered(images, 10, "m")


def test_a_class_that_the_file_has_not_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a", "b", "c", "d", "e")
    (tmp_path / "map.csv").write_text("a,x\n")
    with pytest.raises(
        XCiTError, match=r"map.csv: 4 of the 5 classes in the data are missing in this file: 'b', 'c', 'd', \.\.\."
    ):
        open_measured(str(tmp_path), 0, str(tmp_path / "map.csv"))


def test_streams_have_none(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("a,x\n")
    with pytest.raises(XCiTError, match=r"a class map is for folders and lists; wds:x\.tar is a stream"):
        open_data("wds:x.tar", val_data="y", holdout=0, num_classes=0, class_map=str(tmp_path / "map.csv"))
