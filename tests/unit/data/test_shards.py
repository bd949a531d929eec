"""Tests shards: the files of a pattern, the names of the classes, and the number of images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xcit.data.shards import list_shards, open_shards
from xcit.errors import XCiTError


@pytest.fixture
def folder(tmp_path: Path, png: Callable[[int], bytes], write_tar: Any) -> Path:
    """Writes three shards with 1, 2 and 3 images, labelled 0, 1 and 2, to two folders that stand for two disks."""
    for number, disk in enumerate(("one", "one", "two")):
        files: dict[Any, Any] = {}
        for sample in range(number + 1):
            files |= {f"{sample}.cls": str(number).encode(), f"{sample}.png": png(sample)}
        write_tar(tmp_path / disk / f"train-{number:03d}.tar", files)
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def error_of(pattern: str, num_classes: int | None = 3) -> str:
    with pytest.raises(XCiTError) as caught:
        open_shards(f"wds:{pattern}", num_classes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("one/train-000.tar", [0]),
        ("one/train-{000..001}.tar", [0, 1]),
        ("{one,two}/train-*.tar", [0, 1, 2]),
        ("{one/train-{000..001},two/train-002}.tar", [0, 2, 1]),
        ("two/train-002.tar::{root}/one/train-00[01].tar", [2, 0, 1]),
        ("**/*.tar", [0, 1, 2]),
        ("one/*.tar::{root}/one/train-001.tar", [0, 1]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[int]) -> None:
    disks = ("one", "one", "two")
    assert list_shards(f"{folder}/{pattern.replace('{root}', str(folder))}") == [
        f"{folder}/{disks[number]}/train-{number:03d}.tar" for number in expected
    ]


def test_numbers_without_leading_zeros(tmp_path: Path) -> None:
    for number in range(8, 12):
        (tmp_path / f"{number}.tar").touch()
    assert list_shards(f"{tmp_path}/{{8..11}}.tar") == [f"{tmp_path}/{number}.tar" for number in range(8, 12)]


def test_missing_shards_are_counted_and_the_first_is_named(folder: Path) -> None:
    assert error_of(f"{folder}/one/train-{{000..004}}.tar") == (
        f"wds:{folder}/one/train-{{000..004}}.tar: 3 of the 5 shards are missing, the first is "
        f"{folder}/one/train-002.tar; copy them to these paths, or change the pattern"
    )
    assert error_of(f"{folder}/three/*.tar") == f"wds:{folder}/three/*.tar: no file matches this pattern"


@pytest.mark.parametrize("pattern", ["pipe:touch {}/x", "a.tar::pipe:touch {}/x", "{{pipe:touch {}/x,b}}.tar"])
def test_commands_are_refused(tmp_path: Path, pattern: str) -> None:
    assert "commands (pipe:) are not run" in error_of(pattern.format(tmp_path))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("s3:bucket/train.tar", "shards are read from paths and URLs (PROTOCOL://...), not s3:"),
        ("no-such://bucket/train.tar", "no-such://bucket/train.tar: cannot be read: Protocol not known: no-such"),
        ("train-{000}.tar", "{000} is neither a rising range such as {000..146} nor a list {a,b}"),
        ("train-{005..001}.tar", "{005..001} is neither a rising range"),
    ],
)
def test_impossible_patterns(pattern: str, message: str) -> None:
    assert message in error_of(pattern)


def test_class_names_lie_beside_the_first_shard(folder: Path) -> None:
    pattern = f"wds:{folder}/{{one,two}}/*.tar"
    assert open_shards(pattern, 4).class_ids == ("0", "1", "2", "3")
    assert "the classes are not known: write a file classes.txt beside the first shard" in error_of(pattern[4:], None)
    (folder / "one" / "classes.txt").write_text("cat\ndog \n\nbird\n")
    for num_classes in (None, 3):
        assert open_shards(pattern, num_classes).class_ids == ("cat", "dog", "bird")


def test_images_are_counted_once(folder: Path, cache: Path) -> None:
    pattern = f"wds:{folder}/{{one,two}}/*.tar"
    stream = open_shards(pattern, 3)
    assert (stream.num_images, stream.num_shards) == (6, 3)
    assert [[sample.label for sample in stream.shard(number)] for number in range(3)] == [[0], [1, 1], [2, 2, 2]]
    (record,) = cache.glob("*.json")
    record.write_text(json.dumps({"num_images": 77}))  # a wrong number shows that the cache is read
    assert open_shards(pattern, 3).num_images == 77
    with (folder / "one" / "train-000.tar").open("ab") as shard:  # the file has changed
        shard.write(bytes(512))
    assert open_shards(pattern, 3).num_images == 6
    assert open_shards(f"{pattern}#12", 3).num_images == 12


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("XCIT_CACHE", str(folder / "file"))
    assert open_shards(f"wds:{folder}/one/*.tar", 3).num_images == 3


def test_recorded_counts(folder: Path, cache: Path) -> None:
    pattern = f"wds:{folder}/{{one,two}}/*.tar"
    (folder / "one" / "sizes.json").write_text(json.dumps({"train-000.tar": 10, "train-001.tar": 20, "val.tar": 5}))
    assert open_shards(pattern, 3).num_images == 6  # the other disk has no record of its counts
    index = {"wids_version": 1, "shardlist": [{"url": "elsewhere/train-002.tar", "nsamples": 30, "filesize": 1}]}
    (folder / "two" / "index.json").write_text(json.dumps(index))
    assert open_shards(pattern, 3).num_images == 60
    assert open_shards(f"wds:{folder}/one/train-000.tar", 3).num_images == 10


@pytest.mark.parametrize("text", ["{", "[1]", '{"train-000.tar": null}'])
def test_a_damaged_record_is_named(folder: Path, text: str) -> None:
    (folder / "one" / "sizes.json").write_text(text)
    assert error_of(f"{folder}/one/*.tar").startswith(f"{folder}/one/sizes.json: the file does not list the number of")


def test_urls(folder: Path, serve: Any) -> None:
    url = serve(folder)
    pattern = f"{url}/one/train-{{000..001}}.tar"
    assert "the number of images is not known: write a file sizes.json beside the shards" in error_of(pattern)
    assert error_of(pattern).endswith(f"as in wds:{pattern}#1281167")
    stream = open_shards(f"wds:{pattern}#3", 3)
    assert (stream.num_images, stream.num_shards) == (3, 2)
    assert [sample.label for sample in stream.shard(1)] == [1, 1]
    (folder / "one" / "sizes.json").write_text(json.dumps({"train-000.tar": 1, "train-001.tar": 2}))
    (folder / "one" / "classes.txt").write_text("cat\ndog\n")
    stream = open_shards(f"wds:{pattern}", None)
    assert (stream.num_images, stream.class_ids) == (3, ("cat", "dog"))
    assert error_of(f"{url}/one/train-{{000..002}}.tar") == f"{url}/one/train-002.tar: cannot be read (HTTP 404)"
