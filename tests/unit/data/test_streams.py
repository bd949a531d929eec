"""Tests that `open_stream` opens every kind of stream, and that `is_stream` distinguishes streams from image lists."""

from pathlib import Path
from typing import Any

import pytest

from xcit.data.classification import open_labelled_images
from xcit.data.shards import TarShards
from xcit.data.streams import LabelledStream, is_stream, open_stream
from xcit.errors import XCiTError


def test_names_of_streams() -> None:
    assert is_stream("wds:/data/train-{000..146}.tar")
    assert is_stream("hf-stream:ILSVRC/imagenet-1k")
    assert not any(map(is_stream, ["hf:ILSVRC/imagenet-1k", "cifar10", "/data/imagenet", "wds"]))


def test_tar_shards(tmp_path: Path, write_tar: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path))
    write_tar(tmp_path / "train.tar", {"1.cls": b"1", "1.png": b""})
    data = f"wds:{tmp_path}/*.tar"
    stream: LabelledStream = open_stream(data, "train", num_classes=2)
    assert isinstance(stream, TarShards)
    assert (stream.num_images, stream.num_shards, stream.class_ids) == (1, 1, ("0", "1"))
    with pytest.raises(XCiTError, match="a stream can't be used here"):
        open_labelled_images(data, "train")


def test_what_is_no_stream() -> None:
    with pytest.raises(XCiTError, match="cifar10: not a stream; a stream is 'hf-stream:NAME' or 'wds:PATTERN'"):
        open_stream("cifar10", "train")
