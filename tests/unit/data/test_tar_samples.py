"""Tests samples of a tar: consecutive files with the same key are a sample; damage gives one unreadable sample."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcit.data.samples import StreamSample
from xcit.data.tar_samples import read_tar
from xcit.errors import XCiTError

Png = Callable[[int], bytes]


def greys(samples: list[StreamSample]) -> list[tuple[int, int]]:
    """Returns the label and the grey level of each sample."""
    return [(sample.label, int(np.asarray(sample.read())[0, 0, 0])) for sample in samples]


def error_of(sample: StreamSample) -> str:
    assert sample.label == -1
    with pytest.raises(XCiTError) as caught:
        sample.read()
    return str(caught.value)


@pytest.fixture
def files(png: Png) -> dict[str, bytes]:
    return {
        "a/0001.cls": b"3\n",
        "a/0001.png": png(10),
        "a/0002.JPEG": png(20),
        "a/0002.json": json.dumps({"label": 4, "width": 5}).encode(),
        "a/0002.txt": b"a caption",
        "b/0001.cls": b"0",
        "b/0001.seg.png": png(99),
        "b/0001.webp": png(30),
    }


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz"])
def test_samples_come_in_order(tmp_path: Path, files: dict[str, bytes], write_tar: Any, name: str) -> None:
    shard = str(write_tar(tmp_path / name, files))
    samples = list(read_tar(shard, 5))
    assert [sample.name for sample in samples] == [
        f"{shard}/a/0001.png",
        f"{shard}/a/0002.jpeg",
        f"{shard}/b/0001.webp",
    ]
    assert greys(samples) == [(3, 10), (4, 20), (0, 30)]
    assert greys([sample.fetched() for sample in samples]) == greys(samples)


def test_over_http(tmp_path: Path, files: dict[str, bytes], write_tar: Any, serve: Any) -> None:
    write_tar(tmp_path / "train.tar", files)
    url = serve(tmp_path)
    assert greys(list(read_tar(f"{url}/train.tar", 5))) == [(3, 10), (4, 20), (0, 30)]
    with pytest.raises(XCiTError, match=r"missing.tar: cannot be read \(HTTP 404\)"):
        list(read_tar(f"{url}/missing.tar", 5))


def test_local_pictures_are_not_read_before_they_are_wanted(tmp_path: Path, png: Png, write_tar: Any) -> None:
    shard = write_tar(tmp_path / "train.tar", {"1.cls": b"0", "1.png": png(10)})
    (sample,) = read_tar(str(shard), 5)
    kept = sample.fetched()
    shard.unlink()
    with pytest.raises(XCiTError, match=r"train.tar/1.png: the shard cannot be read \(No such file"):
        sample.read()
    assert sample.fetched() is sample
    assert greys([kept]) == [(0, 10)]


def test_hidden_files_and_notes_are_left_out(tmp_path: Path, png: Png, write_tar: Any) -> None:
    files = {"__notes__.json": b"{}", "._1.png": b"x", "1.png": png(10), "1.cls": b"0", "README.md": b"hello"}
    assert len(list(read_tar(str(write_tar(tmp_path / "train.tar", files)), 5))) == 1


@pytest.mark.parametrize("name", ["train.tar", "train.tar.gz"])
def test_a_key_ends_at_the_first_dot_of_the_files_name(tmp_path: Path, png: Png, write_tar: Any, name: str) -> None:
    """The key is the same as in WebDataset, and includes the folders."""
    files = {
        "a.b/c.d.PNG": png(10),
        "a.b/c.cls": b"1",
        "0001.left.png": png(20),
        "0001.cls": b"2",
        "0002.x.y.png": png(30),
        "0002.x.y.json": b'{"label": 3}',
        "0003.png": png(40),
        "0003.thumb.png": png(99),
        "0003.meta.json": b"{}",
        "0003.cls": b"4",
    }
    shard = str(write_tar(tmp_path / name, files))
    samples = list(read_tar(shard, 5))
    names = ("a.b/c.d.png", "0001.left.png", "0002.x.y.png", "0003.png")
    assert [sample.name for sample in samples] == [f"{shard}/{name}" for name in names]
    assert greys(samples) == [(1, 10), (2, 20), (3, 30), (4, 40)]


def test_no_image_and_no_label_is_left_out_without_a_word(tmp_path: Path, png: Png, write_tar: Any) -> None:
    files = {
        "cat.1.png": png(1),
        "cat.1.cls": b"0",
        "cat.2.png": png(2),
        "cat.2.cls": b"0",
        "0001.png": png(3),
        "0001.a.cls": b"0",
        "0001.b.json": b"{}",
        "a.b/c.d.png": png(4),
        "0002.x.cls": b"0",
        "0003.png": png(5),
        "0003.PNG": png(6),
        "0003.cls": b"0",
    }
    shard = str(write_tar(tmp_path / "train.tar", files))
    assert [error_of(sample) for sample in read_tar(shard, 5)] == [
        f"{shard}/cat: more than one image for this sample (1.png, 2.png): a sample's name ends at the first dot",
        f"{shard}/0001: more than one label for this sample (a.cls, b.json): a sample's name ends at the first dot",
        f'{shard}/a.b/c: the shard has no label for this image (a file .cls, or .json with a "label")',
        f"{shard}/0002: the shard has no image for this label",
        f"{shard}/0003: two files have the same name (png, png, cls)",
    ]


@pytest.mark.parametrize("linked", ["2.png", "2.cls"])
@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_named(tmp_path: Path, png: Png, linked: str, kind: bytes) -> None:
    shard = tmp_path / "train.tar"
    with tarfile.open(shard, "w") as archive:
        for name, data in {"1.png": png(1), "1.cls": b"0", "2.png": png(2), "2.cls": b"0"}.items():
            member = tarfile.TarInfo(name)
            if name == linked:
                member.type, member.linkname = kind, f"1.{name[2:]}"
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    good, bad = read_tar(str(shard), 5)
    assert greys([good]) == [(0, 1)]
    assert error_of(bad) == f"{shard}/2: the shard contains a link instead of this file"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"1.cls": b"0"}, "the shard has no image for this label"),
        ({"1.png": b""}, "the shard has no label for this image"),
        ({"1.png": b"", "1.cls": b"5"}, "its label 5 is not one of the 5 classes"),
        ({"1.png": b"", "1.cls": b"-1"}, "its label '-1' is not one of the 5 classes"),
        ({"1.png": b"", "1.cls": b"dog"}, "its label 'dog' is not one of the 5 classes"),
        ({"1.png": b"", "1.json": b'{"label": true}'}, "its label True is not one of the 5 classes"),
        ({"1.png": b"", "1.json": b"[1]"}, "its label None is not one of the 5 classes"),
        ({"1.png": b"", "1.json": b"{"}, "its json is damaged"),
    ],
)
def test_a_sample_without_image_or_label_is_named(
    tmp_path: Path, png: Png, write_tar: Any, files: dict[str, bytes], reason: str
) -> None:
    shard = write_tar(tmp_path / "train.tar", {**files, "2.png": png(10), "2.cls": b"1"})
    bad, good = read_tar(str(shard), 5)
    assert error_of(bad).startswith(f"{shard}/1: {reason}")
    assert greys([good]) == [(1, 10)]


def test_an_unreadable_picture_is_named(tmp_path: Path, write_tar: Any) -> None:
    shard = write_tar(tmp_path / "train.tar", {"1.png": b"", "1.cls": b"0", "2.png": b"<html>", "2.cls": b"0"})
    messages = []
    for sample in read_tar(str(shard), 5):
        with pytest.raises(XCiTError) as caught:
            sample.read()
        messages.append(str(caught.value))
    assert messages == [
        f"{shard}/1.png: the file is empty (0 bytes)",
        f"{shard}/2.png: not an image that can be read (it looks like an HTML page)",
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_shard_that_is_cut_off_ends_in_one_unreadable_sample(
    tmp_path: Path, png: Png, write_tar: Any, compressed: bool
) -> None:
    random = np.random.default_rng(0)
    files: dict[Any, Any] = {}
    for number in range(3):
        files |= {f"{number}.cls": b"1", f"{number}.png": png(number), f"{number}.txt": random.bytes(3000)}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    shard = tmp_path / ("cut.tar.gz" if compressed else "cut.tar")
    if compressed:
        whole = write_tar(tmp_path / "whole.tar.gz", files).read_bytes()
    found = set()
    for size in range(0, len(whole), 512 if not compressed else 400):
        shard.write_bytes(whole[:size])
        *good, last = read_tar(str(shard), 5)
        is_whole = not compressed and size > len(whole.rstrip(b"\0")) + 511  # a first zero block ends a tar
        if is_whole:
            good.append(last)
        else:
            assert error_of(last).startswith(f"{shard}: the archive is damaged or cut off (")
        assert greys(good) == [(1, number) for number in range(len(good))]
        found.add(len(good))
    assert {0, 1, 2} <= found


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path: Path, png: Png, write_tar: Any) -> None:
    files = {
        f"{number}.{kind}": png(number) if kind == "png" else b"1" for number in range(3) for kind in ("cls", "png")
    }
    shard = write_tar(tmp_path / "train.tar", files)
    data = bytearray(shard.read_bytes())
    start = data.index(b"2.cls")
    data[start : start + 512] = b"x" * 512
    shard.write_bytes(data)
    good, last = read_tar(str(shard), 5)
    assert greys([good]) == [(1, 0)]
    assert error_of(last) == f"{shard}: the archive is damaged or cut off (invalid header)"


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "train.tar"
    shard.write_text("<html>" * 1000)
    (sample,) = read_tar(str(shard), 5)
    assert "the archive is damaged or cut off" in error_of(sample)
    with pytest.raises(XCiTError, match=r"no.tar: the shard cannot be read \(No such file or directory\)"):
        list(read_tar(str(tmp_path / "no.tar"), 5))
