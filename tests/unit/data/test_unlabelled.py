"""Images whose classes are not used."""

from pathlib import Path

import pytest
from PIL import Image

from xcit.data.classification import problems_of
from xcit.data.unlabelled import open_unlabelled_images
from xcit.errors import XCiTError


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(path)


def names(folder: Path) -> list[str]:
    images = open_unlabelled_images(str(folder))
    return [str(Path(images.image_name(index)).relative_to(folder)) for index in range(len(images))]


def test_a_folder_of_any_layout(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", tmp_path / "b" / "c" / "d.png", tmp_path / ".hidden" / "e.png")
    (tmp_path / "readme.txt").write_text("text")
    assert names(tmp_path) == ["a.png", "b/c/d.png"]
    assert problems_of(open_unlabelled_images(str(tmp_path))) == (
        f"{tmp_path}: left out: 1 files without an image suffix: .txt (1); 1 hidden",
    )
    image, label = open_unlabelled_images(str(tmp_path))[0]
    assert (image.size, label) == ((4, 4), 0)


def test_the_training_split_where_there_is_one(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "x" / "a.png", tmp_path / "val" / "x" / "b.png")
    assert names(tmp_path) == ["train/x/a.png"]


def test_a_known_name(fashion_mnist: Path) -> None:
    assert len(open_unlabelled_images("fashion-mnist")) == 60_000


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(XCiTError) as caught:
        open_unlabelled_images(str(tmp_path))
    assert str(caught.value) == f"{tmp_path / 'train'}: a folder without images"
    with pytest.raises(XCiTError, match="nowhere: no such folder; data must be"):
        open_unlabelled_images("nowhere")
