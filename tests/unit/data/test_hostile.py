"""Tests annotations, shards, label files and configs with absurd values: an entry is skipped, or the error is short."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xcit.config import from_dict, override, read_yaml, to_dict
from xcit.data.coco import open_coco
from xcit.data.coco_masks import box_polygon, decode_mask, mask_area, mask_problem
from xcit.data.multi_label import open_multi_label
from xcit.data.tar_samples import read_tar
from xcit.errors import XCiTError
from xcit.training.recipes import get_recipe

SIZE = (20, 30)
SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ([[*SQUARE, 1e9, 1.0]], "a polygon with a point that is far from any image"),
        ([[*SQUARE, 10**400, 1]], "a polygon with a point that is far from any image"),
        ([[*SQUARE, float("inf"), 1]], "a polygon with a value that is not a finite number"),
        ([[0, 0, 200_000, 0] * 100], "a polygon with an outline that is too long"),
        ({"size": [20, 30], "counts": "o" * 2_000_000}, "its packed counts are cut off or invalid"),
        ({"size": [20, 30], "counts": "0" * 2_000_000}, "2,000,000 runs are more than the image can have"),
        ({"size": [20, 30], "counts": [10**400]}, "its counts add up to 1000"),
    ],
)
def test_masks_beyond_any_image(mask: Any, problem: str) -> None:
    assert mask_problem(mask, SIZE).startswith(problem)


def test_masks_near_the_limits_are_right() -> None:
    assert mask_problem([[-100.0, -100.0, 100.0, -100.0, 100.0, 100.0, -100.0, 100.0]], SIZE) == ""
    assert mask_area(box_polygon((1.0, 1.0, 2.0**40, 8.0)), SIZE) == 29 * 8
    floats = {"size": [20.0, 30.0], "counts": [0, 600]}
    assert mask_problem(floats, SIZE) == "" and decode_mask(floats, SIZE).all()


def test_huge_numbers_cost_their_entry_alone(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "1.png")
    good: dict[str, Any] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": [SQUARE]}
    odd: list[dict[str, Any]] = [
        {"bbox": [1, 1, 10**400, 8]},
        {"image_id": 10**30},
        {"category_id": [[]]},
        {"segmentation": [[1e300] * 6]},
    ]
    content = {
        "images": [
            {"id": 1, "file_name": "1.png", "height": 20, "width": 30},
            {"id": 2, "file_name": "2.png", "height": 2**40, "width": 2**40},
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [good, *(good | change for change in odd)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = open_coco(tmp_path / "a.json", "val")
    assert [image.id for image in data.images] == [1]
    assert [found.box for found in data.images[0].objects] == [(1, 1, 8, 8)]
    assert data.masks(0, data.images[0].objects).sum() == 64
    assert len(data.problems) == 5 and "1 images left out, because they are too large: 2.png" in data.problems[0]


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "label", "reason"),
    [
        ("1.cls", b"9" * 5000, "its label '999"),
        ("1.json", b'{"label": ' + b"9" * 5000 + b"}", "its json is damaged"),
        ("1.json", b"[" * 100_000, "its json is damaged"),
        ("1.json", b'{"label": ' + b"[" * 500 + b"]" * 500 + b"}", r"its label \(a list\) is not one of the 10"),
    ],
)
def test_labels_beyond_any_class(name: str, label: bytes, reason: str, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(picture, "PNG")
    files = {"1.png": picture.getvalue(), name: label, "2.png": picture.getvalue(), "2.cls": b"3"}
    bad, good = read_tar(str(tar(tmp_path / "a.tar", files)), 10)
    with pytest.raises(XCiTError, match=reason):
        bad.load()
    assert (good.label, good.load()) == (3, picture.getvalue())


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE])
def test_members_that_are_no_files_are_not_opened(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("1.png")
        member.type, member.devmajor, member.devminor, member.linkname = kind, 1, 5, "/dev/zero"
        archive.addfile(member)
        label = tarfile.TarInfo("1.cls")
        label.size = 1
        archive.addfile(label, io.BytesIO(b"1"))
    (sample,) = read_tar(str(tmp_path / "a.tar"), 10)
    with pytest.raises(XCiTError, match="a link instead of this file"):
        sample.load()


@pytest.mark.parametrize("name", ["1.png", "1.cls"])
def test_a_sparse_member_of_a_terabyte_is_not_read(name: str, tmp_path: Path) -> None:
    member = tarfile.TarInfo(name)
    member.size = 2**40
    header = member.tobuf(tarfile.GNU_FORMAT)
    other = "1.cls" if name == "1.png" else "1.png"
    (tmp_path / "a.tar").write_bytes(tar(tmp_path / "b.tar", {other: b"1"}).read_bytes()[:1024] + header)
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(1024 + 512 + 2**40 + 1024)  # a sparse file, which uses almost no disk space
    samples = list(read_tar(str(tmp_path / "a.tar"), 10))
    with pytest.raises(XCiTError, match=r"1,099,511,627,776 bytes are too many"):
        samples[0].load()


def bomb(entry: str) -> str:
    """Returns YAML of a first line and ten more lines; each of the ten refers ten times to the line before it."""
    lines = [f"a0: &a0 {entry}"]
    for level in range(1, 11):
        inner = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if entry.startswith("{") else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[x]").replace("a10:", "model:"), r"a0 is not a field"),
        (
            bomb("{x: 1}"),
            "merge keys make a mapping too large|a0 is not a field",
        ),  # newer versions of PyYAML merge each only once
        ("task: [dino]", r"no task is called \['dino'\]"),
        ("x: " + "y" * 300_000, "more than 262,144 bytes"),
        ("[" * 5000, "not a YAML config"),
        ("a: 2001-99-99", "not a YAML config"),
        ("a: " + "9" * 5000, "not a YAML config"),
    ],
)
def test_configs_without_end(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(XCiTError, match=message):
        get_recipe(str(tmp_path / "a.yaml"))


def test_a_value_without_end_is_shown_in_short(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(bomb("[x]"))
    value = read_yaml(tmp_path / "a.yaml")["a10"]
    recipe = get_recipe("xcit-pico-fashion-mnist")
    with pytest.raises(XCiTError, match=r"name must be of type str, not \[\[\[\["):
        from_dict(type(recipe), to_dict(recipe) | {"name": value})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer.lr", "0x" + "f" * 5000, "optimizer.lr must be of type float, not a whole number of 20,000 bits"),
        ("run.seed", "0x" + "f" * 5000, "at most 64 bits, not a whole number of 20,000 bits"),
        ("run.seed", "2001-99-99", "run.seed must be of type int, not '2001-99-99'"),
        ("run.seed", "9" * 5000, "run.seed must be of type int, not '999"),
        ("run.batch_size", "[" * 5000, r"run.batch_size must be of type int, not '\[\["),
    ],
)
def test_numbers_beyond_all_bounds(name: str, text: str, message: str) -> None:
    with pytest.raises(XCiTError, match=message):
        override(get_recipe("xcit-pico-fashion-mnist"), {name: text})


@pytest.mark.parametrize("name", ["x.png" * 500, f"{'x' * 300}/1.png", "a\0b/1.png", "../" * 2000 + "1.png"])
def test_names_that_no_file_can_have_are_of_missing_files(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "height": 4, "width": 4}]
    images.append({"id": 2, "file_name": f"{name}.jpg", "height": 4, "width": 4})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    path = tmp_path / "a.json"
    for entries in (images, images[::-1]):
        path.write_text(json.dumps({"images": entries, "categories": categories, "annotations": []}))
        found = open_coco(path, "val")
        assert [image.path.name for image in found.images] == ["1.png"]
        assert [problem.partition(":")[0] for problem in found.problems] == [
            "1 images left out, because the file does not exist"
        ]
    if "\0" not in name:
        (tmp_path / "list.csv").write_text(f"file,label\n1.png,a\n{name}.jpg,b\n")
        with pytest.raises(XCiTError, match="1 of its 2 images do not exist"):
            open_multi_label(str(tmp_path / "list.csv"), "val")
