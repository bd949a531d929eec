"""Tests that CIFAR is opened only from the published files, because other pickles could run any code."""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcit.data.classification import open_labelled_images
from xcit.errors import XCiTError

ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


class Mischief:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XCIT_DATA", str(tmp_path))
    monkeypatch.setenv("XCIT_OFFLINE", "1")
    return tmp_path


@pytest.fixture(params=["cifar10", "cifar100"])
def name(root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes an archive of files with two images each, and replaces the published MD5 sums in torchvision."""
    from torchvision import datasets

    name: str = request.param
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    classes = ["cat", "dog", "frog"]
    files = {kind.meta["filename"]: pickle.dumps({kind.meta["key"]: classes})}
    for index, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
        pixels = np.full((2, 3 * 32 * 32), index, dtype=np.uint8)
        pixels[1, : 32 * 32] = 200  # red
        files[file] = pickle.dumps({"data": pixels, "labels" if name == "cifar10" else "fine_labels": [index % 3, 1]})
    with tarfile.open(root / ARCHIVES[name], "w:gz") as archive:
        for file, data in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

    def md5(data: bytes) -> str:
        return hashlib.md5(data).hexdigest()

    monkeypatch.setattr(kind, "tgz_md5", md5((root / ARCHIVES[name]).read_bytes()))
    monkeypatch.setattr(kind, "train_list", [[file, md5(files[file])] for file, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[file, md5(files[file])] for file, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(files[kind.meta["filename"]])})
    return name


def test_an_archive_in_the_data_folder_is_enough(root: Path, name: str) -> None:
    train, val = open_labelled_images(name, "train"), open_labelled_images(name, "val")
    assert train.class_ids == val.class_ids == ("cat", "dog", "frog")
    num_files = 5 if name == "cifar10" else 1
    assert (len(train), len(val)) == (2 * num_files, 2)
    image, label = val[0]
    assert (image.mode, image.size, label) == ("RGB", (32, 32), num_files % 3)
    assert val[1][0].getpixel((3, 3)) == (200, num_files, num_files)
    assert val.image_name(1) == f"{name} val image 1"
    (root / ARCHIVES[name]).unlink()  # not needed after unpacking
    assert len(open_labelled_images(name, "train")) == len(train)


def test_a_tampered_archive_is_refused(root: Path, name: str) -> None:
    archive = root / ARCHIVES[name]
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(XCiTError) as caught:
        open_labelled_images(name, "val")
    assert str(caught.value) == (
        f"{name} is not on this machine and could not be downloaded ({archive} is not the published archive); "
        f"put the published {archive.name} into {root}"
    )
    assert list(root.iterdir()) == [archive]  # nothing was unpacked


def test_a_tampered_file_is_not_opened(root: Path, name: str) -> None:
    open_labelled_images(name, "val")
    (root / ARCHIVES[name]).unlink()
    for folder in root.glob("cifar-*/"):
        for file in folder.iterdir():
            genuine = file.read_bytes()
            file.write_bytes(pickle.dumps(Mischief(root / "opened")))
            with pytest.raises(XCiTError, match="set to be offline"):
                open_labelled_images(name, "val")
            assert not (root / "opened").exists()
            file.write_bytes(genuine)
    assert len(open_labelled_images(name, "val")) == 2


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_data(root: Path, name: str) -> None:
    with pytest.raises(XCiTError) as caught:
        open_labelled_images(name, "train")
    assert str(caught.value) == (
        f"{name} is not on this machine and could not be downloaded (this machine is set to be offline); "
        f"put the published {ARCHIVES[name]} into {root}"
    )
