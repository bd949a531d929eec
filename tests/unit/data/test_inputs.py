"""Tests the inputs of a command line: units of images that are divided among processes, always in the same order."""

import os
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from xcit.data.inputs import Inputs, open_inputs
from xcit.errors import XCiTError
from xcit.images.read import read_image


@pytest.fixture(autouse=True)
def _pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index in range(5):
        Image.fromarray(np.full((4, 4, 3), 40 * index, np.uint8)).save(f"{index}.png")


def names(*words: str, unit_size: int = 1024) -> list[str]:
    return [getattr(image, "name", str(image)) for image in open_inputs(words, unit_size=unit_size).images()]


def test_files_are_cut_into_units_and_taken_once() -> None:
    inputs = open_inputs([".", "0.png", Path("1.png").absolute()], unit_size=2)
    assert [unit.num_images for unit in inputs.units] == [2, 2, 1]
    assert inputs.num_images == 5
    assert str(inputs.passed_by) == "2 named or linked a second time"
    assert [str(path) for path in inputs.images()] == [f"{index}.png" for index in range(5)]
    assert [str(path) for path in inputs.units[1].open()] == ["2.png", "3.png"]


def test_the_digest_is_of_names_and_units() -> None:
    one = open_inputs(["0.png", "1.png"])
    assert one.sha256 == open_inputs(["0.png", Path("1.png").absolute()]).sha256
    assert len({one.sha256, open_inputs(["1.png", "0.png"]).sha256, open_inputs(["0.png"]).sha256}) == 3


def test_lists() -> None:
    Path("list.txt").write_bytes(b"3.png\r\n\n1.png\n[not a pattern.png\n")
    assert names("@list.txt", "0.png") == ["3.png", "1.png", "[not a pattern.png", "0.png"]
    Path("@0.png").write_bytes(Path("0.png").read_bytes())
    assert names("@0.png") == ["@0.png"]  # a file has this name
    Path("empty.txt").write_text("\n")
    for word, message in (
        ("@empty.txt", "empty.txt: an empty list; it must have one path or URL per line"),
        ("@nowhere.txt", "nowhere.txt: the list can't be read: No such file or directory"),
        ("@.", r"\.: the list can't be read: Is a directory"),
    ):
        with pytest.raises(XCiTError, match=message):
            open_inputs([word])


def test_a_shard_stands_between_files_where_it_was_named() -> None:
    with tarfile.open("a.tar", "w") as archive:
        for name in ("3.png", "list", "4.png"):
            if name == "list":
                Path(name).write_text("text")
            archive.add(name, name)
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    inputs = open_inputs(["0.png", "a.tar", "1.png"])
    assert [unit.num_images for unit in inputs.units] == [1, None, 1]
    assert inputs.num_images is None
    images = list(inputs.images())
    assert [str(image) if isinstance(image, Path) else image.name for image in images] == [
        *("0.png", "a.tar/3.png", "a.tar/4.png", "a.tar/5.png", "1.png")
    ]
    assert not isinstance(images[1], Path)
    assert images[1].read().getpixel((0, 0)) == (120, 120, 120)
    assert not isinstance(images[3], Path)
    with pytest.raises(XCiTError, match=r"a\.tar/5\.png: the shard contains a link instead of this file"):
        images[3].read()


def test_a_damaged_shard_is_counted() -> None:
    with tarfile.open("a.tar", "w") as archive:
        archive.add("3.png")
    Path("cut.tar").write_bytes(Path("a.tar").read_bytes()[:600])
    last = list(open_inputs(["cut.tar"]).images())[-1]
    assert not isinstance(last, Path)
    with pytest.raises(XCiTError, match=r"cut\.tar"):
        last.read()


def test_parquet() -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = Path("2.png").read_bytes()
    pq.write_table(pa.table({"image": [data, None, b"text"]}), "a.parquet")
    inputs = open_inputs(["*.parquet"])
    assert inputs.num_images == 3
    good, missing, bad = inputs.images()
    assert not isinstance(good, Path) and good.name == "a.parquet row 0"
    assert good.read().getpixel((0, 0)) == (80, 80, 80)
    for image, message in ((missing, "row 1: there is no image in this row"), (bad, "row 2: not an image")):
        assert not isinstance(image, Path)
        with pytest.raises(XCiTError, match=message):
            image.read()
    pq.write_table(pa.table({"a": [data], "b": [data], "text": ["x"]}), "b.parquet")
    assert names("b.parquet?image=b") == ["b.parquet row 0"]
    Path("damaged.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    for word, message in (
        ("b.parquet", "it is not clear which column has the images; the columns are a, b, text; name the column as in"),
        ("b.parquet?image=text", "the column text has no images"),
        ("nowhere.parquet", r"nowhere\.parquet: no such file"),
        ("damaged.parquet", r"damaged\.parquet: not a readable Parquet file"),
        ("memory://nowhere/a.parquet", r"memory://nowhere/a\.parquet: cannot be read"),
    ):
        with pytest.raises(XCiTError, match=message):
            open_inputs([word])


def test_urls_that_lead_nowhere() -> None:
    (image,) = open_inputs(["memory://nowhere/a.png"]).images()
    assert not isinstance(image, Path)
    with pytest.raises(XCiTError, match=r"memory://nowhere/a\.png: cannot be read"):
        image.read()
    for word, message in (
        ("memory://nowhere/", r"memory://nowhere/: (a folder without images|its files cannot be listed)"),
        ("memory://nowhere/*.png", r"memory://nowhere/\*\.png: no file matches this pattern"),
        ("nosuch://a/b/", "nosuch://a/b/: cannot be read: "),
    ):
        with pytest.raises(XCiTError, match=message):
            open_inputs([word])


def test_pipes_and_devices_are_refused_in_a_line(tmp_path: Path) -> None:
    """Any form of the path is refused, because opening a pipe may block for ever, and a device has no end."""
    os.mkfifo("pipe.parquet")
    os.mkfifo("pipe.png")
    Path("zero.parquet").symlink_to("/dev/zero")
    for word in ("pipe.parquet", "zero.parquet", f"file://{tmp_path}/pipe.parquet", f"local://{tmp_path}/zero.parquet"):
        with pytest.raises(XCiTError, match="not a regular file") as error:
            open_inputs([word])
        assert "\n" not in str(error.value)
    for word in ("@pipe.png", "@/dev/zero", f"@file://{tmp_path}/pipe.png", "@local:///dev/zero"):
        with pytest.raises(XCiTError, match="not a regular file"):
            open_inputs([word])
    for word in (
        f"file://{tmp_path}/pipe.png",
        f"local://{tmp_path}/pipe.png",
        "file:///dev/zero",
        "local:///dev/zero",
    ):
        (image,) = open_inputs([word]).images()
        with pytest.raises(XCiTError, match="not a regular file"):
            image.read()  # type: ignore[union-attr]
        with pytest.raises(XCiTError, match="not a regular file"):
            read_image(word)


def test_chains_of_protocols_are_refused_in_a_line(tmp_path: Path) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("0.png")
    place = f"file://{tmp_path}/a.zip"
    for word in (
        f"zip://0.png::{place}",
        f"zip://0.png::{tmp_path}/a.zip",
        "zip://0.png::http://127.0.0.1:9/a.zip",
        f"zip://::{place}",
    ):
        (image,) = open_inputs([word]).images()
        for read in (image.read, partial(read_image, word)):  # type: ignore[union-attr]
            with pytest.raises(XCiTError, match=r"a chain of protocols \(::\) is not supported: unpack the archive"):
                read()
    for word in (f"zip://*.png::{place}", f"zip://folder/::{place}/", f"zip://a::{place}.parquet"):
        with pytest.raises(XCiTError, match=r"a chain of protocols \(::\) is not supported"):
            open_inputs([word])
    # "PROTOCOL::..." is no URL, because "://" does not follow the protocol; and there is no file of this name.
    for word in (f"simplecache::file://{tmp_path}/0.png", "filecache::http://127.0.0.1:9/0.png"):
        (found,) = open_inputs([word]).images()
        with pytest.raises(XCiTError, match="no such file"):
            read_image(found)  # type: ignore[arg-type]
    for word, reason in (("zip://0.png", "."), ("reference://x", "missing"), ("nosuch://x", "Protocol not known")):
        with pytest.raises(XCiTError, match=rf"{word}: cannot be fetched \(.*{reason}"):
            read_image(word)


def test_a_search_of_urls_passes_by_what_a_search_of_folders_does() -> None:

    def names_of(inputs: Inputs) -> list[str]:
        return [getattr(image, "name", "").rpartition("searched/")[2] for image in inputs.images()]

    files = fsspec.filesystem("memory")
    for name in ("a.png", "b.txt", ".c.png", "d/e.png", "d/._e.png"):
        files.pipe_file(f"/searched/{name}", b"x")
    try:
        inputs = open_inputs(["memory://searched/"])
        assert names_of(inputs) == ["a.png", "d/e.png"]
        assert str(inputs.passed_by) == "1 files without an image suffix: .txt (1); 2 hidden"
        inputs = open_inputs(["memory://searched/*.png"])
        assert names_of(inputs) == ["a.png"]
        assert str(inputs.passed_by) == "1 hidden"
        assert len(list(open_inputs(["memory://searched/.*"]).images())) == 1
    finally:
        files.rm("/searched", recursive=True)
