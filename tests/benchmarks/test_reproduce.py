"""Runs `benchmarks/reproduce.py` with a local server, small models as stand-ins, and tiny right and wrong data sets."""

import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Done, Forked
from PIL import Image
from reproduce import command
from reproduction import plan as planned
from reproduction.plan import NUM_IMAGES, plan

from xcit.cli import run
from xcit.cli.weights import verify
from xcit.models import SegmenterConfig, XCiT, XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.weights.fetch import Source
from xcit.zoo import RECORDS, find_checkpoint, find_record, get_model, save_model
from xcit.zoo import names as zoo_names
from xcit.zoo.architectures import backbone_of
from xcit.zoo.classes import coco_category_ids, coco_class_names, imagenet_class_ids
from xcit.zoo.conversion import convert
from xcit.zoo.kinds import kind_of_config

NANO = "xcit-nano-12-p16_3rdparty_in1k"
DIST = "xcit-nano-12-p16_3rdparty-dist_in1k"
DINO = "dino_xcit-small-12-p16_in1k"
SEGMENTER = "sem-fpn_xcit-tiny-12-p16_80k_ade20k"
DETECTOR = "mask-rcnn_xcit-tiny-12-p16_3x_coco"
BY_HAND = "debenedetti2022light_xcit_s12_imagenet_linf_eps8"
TINY = XCiTConfig(embed_dim=32, depth=4, num_heads=2)
BACKBONE = backbone_of(TINY)
SHAPES: dict[str, dict[str, Any]] = {
    NANO: {"config": TINY},
    DINO: {"config": replace(TINY, num_classes=0)},
    SEGMENTER: {"model": SegmenterConfig(kind="sem-fpn", backbone=BACKBONE, channels=16)},
    DETECTOR: {"model": MaskRCNNConfig(backbone=BACKBONE, num_classes=80, channels=16, box_features=16)},
}
"""The shapes of the small models that stand in for the published ones; all other fields of their records are real."""
FORMATS = {NANO: "official", DINO: "dino", SEGMENTER: "mmseg", DETECTOR: "mmdet"}


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Yields a server's URL, the folder that it serves, and the digests of the files.

    The folder has one file per model, in the model's published format."""
    folder = tmp_path_factory.mktemp("site")
    for name, form in FORMATS.items():
        torch.manual_seed(0)
        (shape,) = SHAPES[name].values()
        model = kind_of_config(shape).build(shape)
        if name == NANO:
            model.head.bias.data[1] = 100.0  # every image is predicted as class 1; a third is correct
        save_model(model, folder / "native.safetensors")
        convert(folder / "native.safetensors", folder / f"{name}.pth", form)
    (folder / f"{DIST}.pth").write_bytes((folder / f"{NANO}.pth").read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.pth")}
        # The server has the file of NANO under the name of DIST, so its digest is wrong.
        yield f"http://127.0.0.1:{server.server_address[1]}", folder, digests | {f"{DIST}.pth": "fb247f7b"}
        server.shutdown()
        thread.join()


@pytest.fixture
def zoo(site: tuple[str, Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Reduces the zoo to the stand-ins, with the server as their source; returns a function that changes a record."""
    url, _, digests = site
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")  # the only host is the local server
    kept = {name: find_record(name) for name in (*FORMATS, DIST, BY_HAND, "xcit-pico-fashion-mnist")}
    for name in [*RECORDS]:
        monkeypatch.delitem(RECORDS, name)

    def put(name: str, **fields: Any) -> None:
        kept[name] = record = replace(kept[name], **fields)
        monkeypatch.setitem(RECORDS, name, record)
        monkeypatch.setitem(zoo_names._BY_LOWER_NAME, name, record)

    for name in kept:
        file = f"{name}.pth"
        if file in digests:
            source = Source(kind="url", location=f"{url}/{file}", filename=file, sha256=digests[file])
            put(name, sources=(source,), **SHAPES[NANO if name == DIST else name])
        else:
            put(name)
    return put


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Writes tiny data sets: images of three classes, a scene with labels, and an image with one object."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def picture(path: Path, size: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)

    for split, count in (("train", 4), ("val", 2)):
        for wnid in imagenet_class_ids()[:3]:
            for index in range(count):
                picture(root / "imagenet" / split / wnid / f"{index}.png", (40, 36))
    ade = root / "ade" / "ADEChallengeData2016"
    picture(ade / "images" / "validation" / "a.jpg", (128, 8))
    (ade / "annotations" / "validation").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 151, (8, 128), dtype=np.uint8)).save(ade / "annotations" / "validation" / "a.png")
    picture(root / "coco" / "val2017" / "b.png", (160, 10))
    pairs = zip(coco_category_ids(), coco_class_names(), strict=True)
    box = [10, 2, 60, 6]
    thing = {"id": 1, "image_id": 7, "category_id": 3, "bbox": box, "area": 360, "iscrowd": 0}
    thing["segmentation"] = [[10, 2, 70, 2, 70, 8, 10, 8]]
    content = {
        "images": [{"id": 7, "file_name": "b.png", "width": 160, "height": 10}],
        "annotations": [thing],
        "categories": [{"id": number, "name": name} for number, name in pairs],
    }
    (root / "coco" / "annotations").mkdir()
    (root / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return {name: root / name for name in ("imagenet", "ade", "coco")}


def called(main: Any, *arguments: object) -> Done:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("argv", ["program", *map(str, arguments)]), ("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, value)
        with pytest.raises(SystemExit) as ended:
            run(main, "program")
    return Done(int(ended.value.code), *(stream.buffer.getvalue().decode() for stream in (out, err)))


def reproduce(folder: Path, *arguments: object) -> Done:
    return called(
        command, "--out", folder / "out", "--page", folder / "page.md", "--workers", 0, "--device", "cpu", *arguments
    )


def rows(folder: Path) -> dict[tuple[str, str, str], list[str]]:
    """Returns the rows of the page: (model, who published the figure, figure) -> the other cells."""
    lines = (line for line in (folder / "page.md").read_text().splitlines() if line.startswith("| "))
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {(row[0], row[1], row[2]): row[3:] for row in cells if row[0] != "model"}


def test_every_kind_of_model_is_fetched_and_measured(
    zoo: Callable[..., None], data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ("--imagenet", data["imagenet"], "--coco", data["coco"], "--ade20k", data["ade"])
    done = reproduce(tmp_path, *folders)
    assert done.status == 1 and f"{DIST}: " in done.err and "wrong file, expected SHA-256 fb247f7b" in done.err
    found = rows(tmp_path)
    for key in (
        (NANO, "mmpretrain", "top-1"),
        (NANO, "mmpretrain", "top-5"),
        (NANO, "official", "top-1"),
        (DINO, "official, k-NN", "top-1"),
        (SEGMENTER, "official", "mIoU"),
        (DETECTOR, "official", "box AP"),
        (DETECTOR, "official", "mask AP"),
    ):
        published, measured, difference, verdict = found[key]
        assert float(measured) - float(published) == pytest.approx(float(difference), abs=0.011)
        assert verdict.startswith("of other images (")
    assert "not measured: " in found[DIST, "official", "top-1"][3] and "SHA-256" in found[DIST, "official", "top-1"][3]
    assert found[DINO, "official, linear", "top-1"][3] == "not measured"
    assert "download it with a browser" in found[BY_HAND, "official", "top-1"][3]
    assert found[BY_HAND, "official, classifier, AutoAttack, Linf 8/255", "top-1"][3] == (
        "not measured: this package has no AutoAttack"
    )
    assert [found[NANO, by, "top-1"][1] for by in ("official", "mmpretrain")] == ["33.33"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"out", "page.md", "cache"}

    # A second run repeats only failed measurements. On a complete validation split, the page compares the figures.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(f"{NANO}*.json")}
    figures = {"official": 100 / 3 + 0.099, "mmpretrain": 100 / 3 + 0.2}
    accuracies = (replace(one, top1=figures[one.measured_by]) for one in find_checkpoint(NANO).accuracies)
    zoo(NANO, accuracies=tuple(accuracies))
    monkeypatch.setitem(NUM_IMAGES, "ImageNet-1k", 6)
    again = reproduce(tmp_path, *folders)
    assert again.status == 1 and "published" not in again.out
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    found = rows(tmp_path)
    assert found[NANO, "official", "top-1"][2:] == ["-0.10", "as published"]
    assert found[NANO, "mmpretrain", "top-1"][3] == "**differs**"


@pytest.mark.parametrize(
    ("option", "folder", "message"),
    [
        ("--imagenet", "coco", "is not ImageNet"),
        ("--imagenet", "imagenet/val", "is not ImageNet: it has no folder val"),
        ("--imagenet", "nowhere", "nowhere"),
        ("--coco", "ade", "ade"),
        ("--coco", "other", "is not COCO: its 1 classes are not COCO's 80"),
        ("--ade20k", "imagenet", "imagenet"),
        ("--ade20k", "scenes", "is not ADE20K: its 2 classes"),
    ],
)
def test_another_data_set_is_refused_before_anything_is_fetched(
    option: str, folder: str, message: str, zoo: Callable[..., None], data: dict[str, Path], tmp_path: Path
) -> None:
    source = data["coco"]
    other = tmp_path / "other"
    if folder == "other":
        (other / "annotations").mkdir(parents=True)
        (other / "val2017").symlink_to(source / "val2017")
        content = json.loads((source / "annotations" / "instances_val2017.json").read_text())
        content["categories"] = [{"id": 3, "name": "cat"}]
        (other / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    if folder == "scenes":
        for name in ("images", "labels"):
            (tmp_path / "scenes" / name / "val").mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "scenes" / name / "val" / "a.png")
        (tmp_path / "scenes" / "classes.txt").write_text("sky\nsea\n")
    place = tmp_path / folder if folder in ("other", "scenes", "nowhere") else source.parent / folder
    done = reproduce(tmp_path, option, place)
    assert done.status == 2 and message in done.err and len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "page.md").exists() and not (tmp_path / "cache").exists()


def test_what_can_t_be_measured_is_said_at_once(
    zoo: Callable[..., None], data: dict[str, Path], tmp_path: Path
) -> None:
    assert "give a data set" in reproduce(tmp_path).err
    assert "no model is called 'resnet'" in reproduce(tmp_path, "--coco", data["coco"], "--only", "resnet").err
    assert "none of these models can be measured" in reproduce(tmp_path, "--coco", data["coco"], "--only", NANO).err


def test_processes_share_the_work(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (tmp_path / "streams").mkdir()
    model = get_model(NANO)
    assert isinstance(model, XCiT)
    save_model(model, mirror / f"{NANO}.safetensors")
    for name, value in {"XCIT_MIRROR": mirror, "XCIT_OFFLINE": 1, "XCIT_CACHE": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    program = Path(__file__).parents[2] / "benchmarks" / "reproduce.py"
    arguments = ["--imagenet", data["imagenet"], "--out", tmp_path / "out", "--page", tmp_path / "page.md"]
    arguments += ["--only", NANO, "--only", DIST, "--workers", 0, "--device", "cpu"]
    done = Forked([str(word) for word in (program, *arguments)], 2, tmp_path / "streams").finish()
    # If a measurement fails, the exit status of its process is still 0: else torchrun would stop the others. No process
    # repeats a measurement that failed in another process.
    assert done.status == 0, done.err
    assert sorted(line.split(":")[0] for line in done.out.splitlines()) == [
        f"{NANO}, classifier by {by}" for by in ("mmpretrain", "official")
    ]
    assert done.err.count(f"{DIST}: cannot get the weights") == 2
    verdicts = {key[:2]: cells[3] for key, cells in rows(tmp_path).items()}
    assert len(rows(tmp_path)) == 6
    for by in ("mmpretrain", "official"):
        assert verdicts[NANO, by].startswith("of other images (6 of 50,000 here)") and verdicts[DIST, by].startswith(
            "not measured: "
        )


def test_the_plan_has_every_published_figure() -> None:
    measurements = plan()
    assert len({one.key for one in measurements}) == len(measurements)
    of_classifiers = [one for one in measurements if one.method == "classifier" and one.dataset == "ImageNet-1k"]
    assert len({one.record.name for one in of_classifiers}) == 42 + 6
    assert sum(one.method == "k-NN" for one in measurements) == sum(one.method == "linear" for one in measurements) == 4
    assert sum("mIoU" in one.published for one in measurements) == 16
    assert sum("mask AP" in one.published for one in measurements) == 8
    assert len({one.record.name for one in measurements}) == 82
    specs = {one.protocol: one.spec for one in measurements if one.record.name == NANO}
    assert specs["mmpretrain"].resize_to == 256 and specs["official"].resize_to == 224
    others = {one.record.name for one in measurements if one.others and not one.impossible}
    assert others == {f"debenedetti2022light_xcit_{size}12_imagenet_linf" for size in "sml"}
    assert {one.dataset for one in measurements} == planned.NUM_IMAGES.keys()


def test_verify_all(zoo: Callable[..., None]) -> None:
    done = called(verify, "--all")
    assert done.status == 1
    lines = dict(line.split(": ", 1) for line in done.out.splitlines()[:-1])
    assert lines.keys() == {*FORMATS, DIST, BY_HAND, "xcit-pico-fashion-mnist"}
    assert " parameters, " in lines[NANO] and lines[BY_HAND].startswith("not checked: ")
    assert lines[DIST].startswith("failed: ") and "wrong file, expected SHA-256 fb247f7b" in lines[DIST]
    assert done.out.splitlines()[-1] == (
        "5 of 7 models are right: names, shapes, digest, finite values; 1 have to be downloaded with a browser; "
        f"1 failed: {DIST}"
    )
    assert "give a name or a path, or --all" in called(verify, "--all", "packaged").err
