"""Tests which folders are splits and which are classes, in the usual layouts."""

from pathlib import Path

import pytest
from PIL import Image

from xcit.data.classification import describe_classes, has_validation, open_labelled_images, problems_of
from xcit.data.splits import check_classes, find_splits
from xcit.data.unlabelled import open_unlabelled_images
from xcit.errors import XCiTError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def classes_and_files(data: Path, split: str) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    images = open_labelled_images(str(data), split)  # type: ignore[arg-type]
    found = [(Path(images.image_name(index)).name, images[index][1]) for index in range(len(images))]
    return images.class_ids, found


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training", "validation"),
        ("train", "valid"),
        ("train", "test"),
        ("Training", "Testing"),
        ("TRAIN", "Val"),
        ("archive/train", "archive/val"),
        ("archive/more/train", "archive/more/valid"),
        ("train/train", "val/val"),
    ],
)
def test_splits_by_any_of_their_names(tmp_path: Path, train: str, val: str) -> None:
    write(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{val}/cat/3.png", f"{val}/dog/4.png")
    assert classes_and_files(tmp_path, "train") == (("cat", "dog"), [("1.png", 0), ("2.png", 1)])
    assert classes_and_files(tmp_path, "val") == (("cat", "dog"), [("3.png", 0), ("4.png", 1)])
    assert has_validation(str(tmp_path))
    assert [open_unlabelled_images(str(tmp_path)).image_name(index)[-5:] for index in range(2)] == ["1.png", "2.png"]
    assert len(open_unlabelled_images(str(tmp_path))) == 2


def test_of_several_to_measure_on_validation_comes_first_and_the_others_are_named(tmp_path: Path) -> None:
    names = [f"{split}/{name}/{split}.png" for split in ("train", "valid", "test", "notes") for name in ("a", "b")]
    write(tmp_path, *names)
    assert classes_and_files(tmp_path, "val")[1] == [("valid.png", 0), ("valid.png", 1)]
    assert problems_of(open_labelled_images(str(tmp_path), "val")) == (
        f"{tmp_path}: the folder notes is not read: it is not a split",
        f"{tmp_path}: the folder test is not read: it is not a split",
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path, "bus/1.png", "car/2.png", "train/3.png")
    assert classes_and_files(tmp_path, "train") == (("bus", "car", "train"), [("1.png", 0), ("2.png", 1), ("3.png", 2)])
    assert not has_validation(str(tmp_path))


def test_training_images_alone_serve_as_either(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/1.png", "train/dog/2.png")
    assert classes_and_files(tmp_path, "val") == classes_and_files(tmp_path, "train")
    assert classes_and_files(tmp_path, "train")[0] == ("cat", "dog")
    assert not has_validation(str(tmp_path))


def test_images_to_measure_on_alone_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path, "val/cat/1.png", "val/dog/2.png")
    assert classes_and_files(tmp_path, "val")[0] == ("cat", "dog")
    with pytest.raises(XCiTError, match="no training images: its folder val has validation images"):
        open_labelled_images(str(tmp_path), "train")


@pytest.mark.parametrize("parent", ["dataset", "a/b"])
def test_a_single_parent_is_looked_through(tmp_path: Path, parent: str) -> None:
    write(tmp_path, f"{parent}/cat/1.png", f"{parent}/dog/2.png", "__MACOSX/dataset/x/y.png", ".git/z/a.png")
    assert find_splits(tmp_path).root == tmp_path / parent
    assert classes_and_files(tmp_path, "train") == (("cat", "dog"), [("1.png", 0), ("2.png", 1)])


def test_numbered_folders_are_in_the_order_of_numbers_and_others_of_names(tmp_path: Path) -> None:
    write(tmp_path / "numbers", *(f"{number}/1.png" for number in range(12)))
    assert classes_and_files(tmp_path / "numbers", "train")[0] == tuple(map(str, range(12)))
    write(tmp_path / "names", *(f"class{number}/1.png" for number in (1, 2, 10)))
    assert classes_and_files(tmp_path / "names", "train")[0] == ("class1", "class10", "class2")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.png", "dog/2.png", "stray.png", ".git/x.png", "meta/y.png")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/notes.txt", "dog/.hidden", "README", "classes.txt"):
        (tmp_path / name).write_text("cat\ndog\n")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    assert problems_of(open_labelled_images(str(tmp_path), "train")) == (
        f"{tmp_path}: 1 images left out: they are not in class folders, so their class is unknown",
        f"{tmp_path}: left out: 4 files without an image suffix: .heic (2), .txt (1), no suffix (1); "
        "2 hidden; 1 named or linked a second time; 1 folders with a name that no class has, such as meta",
    )


def test_what_was_found_is_said_in_a_line(tmp_path: Path) -> None:
    write(tmp_path, *(f"{name}/1.png" for name in "abcdefg"))
    found = describe_classes(open_labelled_images(str(tmp_path), "train"))
    assert found == f"7 classes: a, b, c, d, e, ...; 7 images in {tmp_path}"


def test_what_can_be_no_classes_is_said() -> None:
    with pytest.raises(XCiTError, match="here: only one class, 'images', but training needs two or more"):
        check_classes(("images",), "here")
    with pytest.raises(XCiTError, match="its folders 'seg_test', 'seg_train' would be the classes"):
        check_classes(("seg_test", "seg_train"), "here")
    with pytest.raises(XCiTError, match="call the folders train and val"):
        check_classes(("train2017", "val2017"), "here")
    check_classes(("cat", "test_tube"), "here")


def test_a_file_of_classes_gives_their_order(tmp_path: Path) -> None:
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "dog")))
    (tmp_path / "classes.txt").write_text("dog\nbird\ncat\n")
    assert classes_and_files(tmp_path, "train") == (("dog", "bird", "cat"), [("1.png", 2), ("1.png", 0)])
    (tmp_path / "classes.txt").write_text("cat Felis catus\ndog Canis familiaris\n")
    assert classes_and_files(tmp_path, "val")[0] == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\ndog\n")
    with pytest.raises(XCiTError, match="the class 'dog' occurs twice"):
        open_labelled_images(str(tmp_path), "val")
    (tmp_path / "classes.txt").write_text("dog\nbird\n")
    with pytest.raises(XCiTError, match=r"the data set's classes\.txt or class_map\.txt does not contain 'cat'"):
        open_labelled_images(str(tmp_path), "val")
