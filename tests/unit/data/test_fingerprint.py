import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.data.classification import ImageFiles, ImageSubset, KnownImages, open_labelled_images
from xcit.data.fingerprint import fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("L", (4, 4), 50 * index).save(tmp_path / name / f"{index}.png")
    return tmp_path


def of_folder(folder: Path) -> str | None:
    return fingerprint(open_labelled_images(str(folder), "train"))


def test_a_folder_is_itself_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of_folder(folder)
    assert before is not None
    assert len(before) == 64
    monkeypatch.chdir(folder.parent)
    assert of_folder(Path(folder.name)) == before, "however its path is written"
    path = folder / "a" / "1.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = of_folder(folder)
    assert changed != before
    (folder / "a" / "1.png").rename(folder / "a" / "2.png")
    assert of_folder(folder) not in (before, changed)
    os.truncate(folder / "b" / "0.png", 10)
    os.utime(folder / "b" / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len({before, changed, of_folder(folder)}) == 3


def test_labels_and_classes_count(folder: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    items = [(path, index // 2) for index, path in enumerate(paths)]
    found = [
        fingerprint(ImageFiles(items, ("a", "b"))),
        fingerprint(ImageFiles([(path, 1 - label) for path, label in items], ("a", "b"))),
        fingerprint(ImageFiles(items, ("a", "c"))),
        fingerprint(ImageFiles(items[:3], ("a", "b"))),
    ]
    assert len(set(found)) == 4


def test_of_a_missing_file_nothing_is_known(folder: Path) -> None:
    images = open_labelled_images(str(folder), "train")
    (folder / "b" / "0.png").unlink()
    assert fingerprint(images) is None


class Arrays(list):
    """A data set like torchvision's: items are images with labels; `data` has all pixels, `targets` all labels."""

    def __init__(self, data: np.ndarray, targets: list[int]) -> None:
        super().__init__(zip(map(Image.fromarray, data), targets, strict=True))
        self.data, self.targets = data, targets


def test_torchvision_s_sets_are_told_by_their_pixels_and_labels() -> None:
    data, classes = np.zeros((3, 4, 4), np.uint8), ("a", "b")
    before = fingerprint(KnownImages("x", classes, Arrays(data, [0, 1, 1])))
    assert before == fingerprint(KnownImages("y", classes, Arrays(data.copy(), [0, 1, 1])))
    other = data.copy()
    other[2, 3, 3] = 1
    assert before != fingerprint(KnownImages("x", classes, Arrays(other, [0, 1, 1])))
    assert before != fingerprint(KnownImages("x", classes, Arrays(data, [0, 1, 0])))
    assert fingerprint(KnownImages("x", classes, [])) is None


def test_fashion_mnist_s_splits_differ(fashion_mnist: Path) -> None:
    one, other = (fingerprint(open_labelled_images("fashion-mnist", split)) for split in ("train", "val"))
    assert one is not None
    assert other is not None
    assert one != other


def test_of_other_images_nothing_is_known(folder: Path) -> None:
    assert fingerprint(ImageSubset(open_labelled_images(str(folder), "train"), [0])) is None
