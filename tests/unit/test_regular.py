import os
import pwd
from pathlib import Path

import pytest

from xcit.config import read_yaml
from xcit.data.coco import open_coco
from xcit.data.multi_label import open_multi_label
from xcit.data.named import data_dir
from xcit.errors import XCiTError
from xcit.images.read import read_image, read_labels
from xcit.regular import expanded, regular
from xcit.training.engine.checkpoint import load_checkpoint
from xcit.weights.fetch import cache_dir
from xcit.zoo import get_model


def test_files_folders_and_what_is_missing_pass(tmp_path: Path) -> None:
    file, missing = tmp_path / "file", tmp_path / "missing"
    file.write_bytes(b"x")
    assert [regular(path) for path in (file, str(tmp_path), missing)] == [file, tmp_path, missing]
    with pytest.raises(ValueError, match="null"):
        regular("a\0b").open()


@pytest.mark.parametrize(
    "read",
    [
        regular,
        lambda path: get_model(str(path)),
        load_checkpoint,
        read_yaml,
        read_image,
        read_labels,
        lambda path: open_coco(path, "val"),
        lambda path: open_multi_label(str(path), "train"),
    ],
)
def test_pipes_and_devices_are_not_opened(read, tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        with pytest.raises((OSError, XCiTError), match=r"regular file|no such|no data|is neither"):
            read(path)


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch, tmp_path: Path) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XCIT_CACHE", "XCIT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(XCiTError, match=r"~/\.cache: there is no such home directory; set XCIT_CACHE"):
        cache_dir()
    with pytest.raises(XCiTError, match=r"~/\.cache: there is no such home directory; set XCIT_DATA"):
        data_dir()
    with pytest.raises(XCiTError, match="~nobody-of-that-name/a: there is no such home directory; give another"):
        expanded("~nobody-of-that-name/a", "give another")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (cache_dir(), data_dir()) == (tmp_path / "xcit", tmp_path / "xcit" / "data")
