"""The images that users name: units that are divided among processes, always in the same order."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcit.data.inputs import open_inputs
from xcit.errors import XCiTError


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
    assert names("@0.png") == ["@0.png"]  # a file of that name
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
    with pytest.raises(XCiTError, match=r"a\.tar/5\.png: a link in the shard"):
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
        ("b.parquet", "which column holds the images is not clear; the columns are a, b, text; name it as in"),
        ("b.parquet?image=text", "the column text holds no images"),
        ("nowhere.parquet", r"nowhere\.parquet: no such file"),
        ("damaged.parquet", r"damaged\.parquet: no Parquet file that can be read"),
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
