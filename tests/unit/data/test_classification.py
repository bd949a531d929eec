"""Tests data sets for classification: class folders, the usual layouts of ImageNet, and Fashion-MNIST."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.data.classification import KNOWN_DATA, ImageFiles, ImageSubset, LabelledImages, open_labelled_images
from xcit.data.named import FASHION_MNIST_CLASSES, data_dir, fashion_mnist_root
from xcit.errors import XCiTError
from xcit.zoo.classes import imagenet_class_ids

WNIDS = ("n01440764", "n02123045", "n15075141")  # tench 0, tabby 281, toilet tissue 999


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (grey, grey, grey)).save(path)
    return path


def pictures(root: Path, names: Iterable[str]) -> list[Path]:
    return [picture(root / name, grey=index) for index, name in enumerate(names)]


def labels(images: LabelledImages) -> dict[str, int]:
    """Returns the label of each file name; checks that no file name occurs twice."""
    found = {Path(images.image_name(index)).name: images[index][1] for index in range(len(images))}
    assert len(found) == len(images)
    return found


def error_of(data: Path | str, split: str = "val") -> str:
    with pytest.raises(XCiTError) as caught:
        open_labelled_images(str(data), split)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# Class folders


def test_class_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    pictures(tmp_path, ["dog/a.png", "cat/b.jpg", "cat/deep/er/c.png", "bird/d.JPEG"])
    for split in ("train", "val"):
        images = open_labelled_images(str(tmp_path), split)
        assert images.class_ids == ("bird", "cat", "dog")
        assert labels(images) == {"d.JPEG": 0, "b.jpg": 1, "c.png": 1, "a.png": 2}
        image, _ = images[0]
        assert (image.mode, image.size) == ("RGB", (5, 4))


def test_train_and_val_folders_by_wnid(tmp_path: Path) -> None:
    pictures(tmp_path / "train", [f"{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in range(2)])
    pictures(tmp_path / "val", [f"{wnid}/ILSVRC2012_val_{n}.JPEG" for n, wnid in enumerate(WNIDS)])
    train = open_labelled_images(str(tmp_path), "train")
    val = open_labelled_images(str(tmp_path), "val")
    assert train.class_ids == val.class_ids == WNIDS
    assert (len(train), len(val)) == (6, 3)
    assert labels(val) == {f"ILSVRC2012_val_{n}.JPEG": n for n in range(3)}
    assert labels(train)["n15075141_1.JPEG"] == 2


def test_other_files_and_hidden_ones_are_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, ["cat/a.png", ".git/x.png", "cat/.hidden.png", "meta/picture.png"])
    (tmp_path / "cat" / "notes.txt").write_text("")
    (tmp_path / "README.md").write_text("")
    images = open_labelled_images(str(tmp_path), "train")
    assert images.class_ids == ("cat",)
    assert labels(images) == {"a.png": 0}


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["cat/a.png"])
    (tmp_path / "dog").mkdir()
    for split in ("train", "val"):
        assert error_of(tmp_path, split) == f"{tmp_path}: no images of class 'dog'; remove the empty folder or fill it"


def test_no_images_at_all(tmp_path: Path) -> None:
    assert error_of(tmp_path) == (
        f"{tmp_path}: no images by class: expected a folder for each class, with images in it"
    )
    (tmp_path / "cat").mkdir()
    assert "no images by class" in error_of(tmp_path, "train")


def test_no_such_folder(tmp_path: Path) -> None:
    assert error_of(tmp_path / "no") == f"{tmp_path}/no: no such folder; data must be {KNOWN_DATA}"
    picture(tmp_path / "file.png")
    assert "no such folder" in error_of(tmp_path / "file.png")


# A flat folder with its labels


@pytest.mark.parametrize(
    ("place", "lines"),
    [
        ("val/val.txt", ["val_1.JPEG 281", "val_2.JPEG 999", "val_3.JPEG 0"]),
        ("val.txt", ["val/val_1.JPEG 281", "val/val_2.JPEG 999", "", "val/val_3.JPEG 0"]),
        ("meta/val.txt", ["val_1.JPEG n02123045", "val_2.JPEG n15075141", "val_3.JPEG n01440764"]),
        ("ILSVRC2012_val.txt", ["val_1 n02123045", "val_2 999", "val_3 0"]),
        (
            "LOC_val_solution.csv",
            [
                "ImageId,PredictionString",
                "val_3,n01440764 85 1 499 272",
                "val_1,n02123045 131 0 499 254 n02123045 3 4 5 6 ",
                "val_2,n15075141 4 77 493 319",
            ],
        ),
    ],
)
@pytest.mark.parametrize("given", ["root", "val"])
def test_a_flat_val_folder_and_its_labels(tmp_path: Path, place: str, lines: list[str], given: str) -> None:
    pictures(tmp_path / "val", ["val_1.JPEG", "val_2.JPEG", "val_3.JPEG"])
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("\n".join(lines) + "\n")
    images = open_labelled_images(str(tmp_path if given == "root" else tmp_path / "val"), "val")
    assert images.class_ids == imagenet_class_ids()
    assert labels(images) == {"val_1.JPEG": 281, "val_2.JPEG": 999, "val_3.JPEG": 0}


def test_a_flat_folder_without_labels_says_what_is_missing(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    message = error_of(tmp_path)
    assert message.startswith(f"{tmp_path}: images without class folders need a file val.txt with their labels")
    assert "index from 0, or wnid" in message
    assert "no images by class" in error_of(tmp_path, "train")  # this layout is accepted only for validation


def test_an_image_without_a_label_is_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "val.txt").write_text("a.png 3\n")
    assert error_of(tmp_path) == f"{tmp_path}/val.txt: no label for b.png"


@pytest.mark.parametrize("line", ["a.png", "a.png 1000", "a.png -1", "a.png cat", "a.png n99999999", "a.png 1.5"])
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    pictures(tmp_path, ["a.png"])
    (tmp_path / "val.txt").write_text(f"a.png 3\n{line}\n")
    assert error_of(tmp_path).startswith(f"{tmp_path}/val.txt, line 2: {line!r} is not a file name and a class")


# Parts, and data sets by name


def test_a_subset_keeps_names_labels_and_classes(tmp_path: Path) -> None:
    paths = pictures(tmp_path, ["a.png", "b.png", "c.png"])
    images = ImageFiles([(path, label) for label, path in enumerate(paths)], ("x", "y", "z"))
    part = ImageSubset(images, [2, 0])
    assert (len(part), part.class_ids) == (2, ("x", "y", "z"))
    assert [part[0][1], part[1][1]] == [2, 0]
    assert part[0][0].getpixel((0, 0)) == (2, 2, 2)
    assert part.image_name(0) == str(paths[2])


@pytest.mark.usefixtures("fashion_mnist")
def test_fashion_mnist() -> None:
    val, train = open_labelled_images("fashion-mnist", "val"), open_labelled_images("fashion-mnist", "train")
    assert (len(val), len(train)) == (10_000, 60_000)
    assert val.class_ids == train.class_ids == FASHION_MNIST_CLASSES
    image, label = val[0]
    assert (image.mode, image.size, label) == ("L", (28, 28), 9)
    assert train[0][1] == 9
    # Published figures of the data set: a mean of 0.286 (rounded), and classes of equal size.
    sample = np.stack([np.asarray(val[index][0]) for index in range(0, 10_000, 20)])
    assert abs(sample.mean() / 255 - 0.286) < 0.01
    assert sorted({val[index][1] for index in range(100)}) == list(range(10))
    assert val.image_name(7) == "Fashion-MNIST val image 7"


def test_fashion_mnist_is_found_where_it_lies(fashion_mnist: Path) -> None:
    assert data_dir() == fashion_mnist
    assert fashion_mnist_root(debian=Path("no")) == fashion_mnist


def test_missing_fashion_mnist_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_DATA", str(tmp_path))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    with pytest.raises(XCiTError) as caught:
        fashion_mnist_root(debian=tmp_path / "no")
    message = str(caught.value)
    assert "set to be offline" in message
    assert "dataset-fashion-mnist" in message
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert "\n" not in message


def test_where_data_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XCIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_dir() == tmp_path / "xcit" / "data"
    monkeypatch.setenv("XCIT_DATA", str(tmp_path / "own"))
    assert data_dir() == tmp_path / "own"
