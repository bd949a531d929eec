import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.cli.predict import packaged_images
from xcit.data.named import FASHION_MNIST_CLASSES
from xcit.images.preprocess import preprocess
from xcit.images.read import read_image
from xcit.inference.classify import extract_features
from xcit.weights.files import read_checkpoint
from xcit.zoo import CHECKPOINTS, DETECTORS, RECORDS, SEGMENTERS, fetch, find_checkpoint, get_model, save_model
from xcit.zoo.load import packaged_path

PACKAGED = packaged_path(CHECKPOINTS["xcit-pico-fashion-mnist"])


def start(*arguments: object, **options) -> subprocess.Popen:
    """Starts `xcit ARGUMENTS...` in a process that can receive Ctrl-C even if the tests run in the background."""
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import xcit.cli; xcit.cli.main()"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", **options)


# list, info


def test_list(xcit):
    done = xcit("list")
    head, *lines = done.out.splitlines()
    assert (done.status, done.err) == (0, "")
    assert head.split()[:2] == ["name", "px"]
    assert [line.split()[0] for line in lines] == sorted(RECORDS)
    row = next(line for line in lines if line.startswith("xcit-nano-12-p8_3rdparty-dist_in1k-384px "))
    assert row.split() == ["xcit-nano-12-p8_3rdparty-dist_in1k-384px", "384", "77.8", "77.7", "ImageNet-1k"]
    row = next(line for line in lines if line.startswith("dino_xcit-small-12-p16_in1k "))
    assert row.split() == ["dino_xcit-small-12-p16_in1k", "224", "76.0", "77.8", "ImageNet-1k"]
    row = next(line for line in lines if line.startswith("sem-fpn_xcit-tiny-12-p16_80k_ade20k "))
    assert row.split() == ["sem-fpn_xcit-tiny-12-p16_80k_ade20k", "512", "38.1", "ADE20K"]
    assert row.index("38.1") == head.index("mIoU")
    row = next(line for line in lines if line.startswith("dino_xcit-small-12-p16_in1k "))
    # The figures are aligned at the right edge of their column's heading.
    assert row.index("76.0") + 4 == head.index("top-1 k-NN") + len("top-1 k-NN")
    assert row.index("77.8") + 4 == head.index("top-1 linear") + len("top-1 linear")


def test_list_and_info_of_segmenters(xcit):
    names = json.loads(xcit("list", "--task", "semantic-segmentation", "--json").out)
    assert names == sorted(SEGMENTERS)
    name = "upernet_xcit-small-12-p16_160k_ade20k"
    text = xcit("info", name).out
    for part in ("upernet on small-12-p16: width 384", "150 classes", "mIoU 45.9%", "54,199,100", "fit 2048 x 512"):
        assert part in text
    assert json.loads(xcit("info", name, "--json").out)["complexity"] == {"params": 54199100}


def test_list_and_info_of_detectors(xcit):
    names = json.loads(xcit("list", "--task", "object-detection", "--json").out)
    assert names == sorted(DETECTORS)
    name = "mask-rcnn_xcit-small-12-p16_3x_coco"
    head, row = xcit("list", name).out.splitlines()
    assert row.split() == [name, "800", "45.3", "40.8", "COCO"]
    for figure, heading in (("45.3", "box AP"), ("40.8", "mask AP")):
        assert row.index(figure) + 4 == head.index(heading) + len(heading)
    text = xcit("info", name).out
    for part in ("mask-rcnn on small-12-p16: width 384", "80 classes", "box AP 45.3%", "44,386,560", "fit 1333 x 800"):
        assert part in text


@pytest.mark.parametrize("pattern", ["xcit-nano", "*-p8_*384px", "XCIT-Tiny-24-p1?"])
def test_list_of_a_pattern(xcit, pattern):
    names = json.loads(xcit("list", pattern, "--json").out)
    assert names == sorted(name for name in CHECKPOINTS if fnmatch(name, f"{pattern.lower()}*"))
    assert 0 < len(names) < len(CHECKPOINTS)


def test_info(xcit):
    done = xcit("info", "xcit_nano_12_p16")
    assert (done.status, done.err) == (0, "")
    for text in ("xcit-nano-12-p16_3rdparty_in1k", "3,053,224", "top-1 70.35%, top-5 89.98%", "69.90%", "Apache-2.0"):
        assert text in done.out


def test_info_of_a_backbone(xcit):
    done = xcit("info", "dino_xcit_small_12_p8")
    assert (done.status, done.err) == (0, "")
    for text in ("dino_xcit-small-12-p8_in1k", "no classifier", "top-1 77.10% by k-NN", "top-1 79.20% by linear"):
        assert text in done.out


def test_info_as_json(xcit):
    found = json.loads(xcit("info", "packaged", "--json").out)
    assert found["name"] == "xcit-pico-fashion-mnist"
    assert found["complexity"]["params"] == sum(p.numel() for p in get_model("packaged").parameters())
    assert found["preprocessing"]["image_size"] == 28


# predict

GARMENTS = "xcit: model xcit-pico-fashion-mnist, which only knows garments (10 classes)\n"


def test_predict_says_which_model_answered(xcit, tmp_path):
    save_model(get_model("packaged", pretrained=True), tmp_path / "mine.safetensors")
    for path, weights in (("packaged", ()), ("XCIT-pico-fashion-mnist", ())):
        assert xcit("predict", packaged_images()[0], "--model", path, *weights).err == GARMENTS
    told = "xcit: model mine.safetensors (10 classes)\n"
    assert xcit("predict", packaged_images()[0], "--model", "mine.safetensors").err == told
    told = "xcit: model packaged with the weights of mine.safetensors (10 classes)\n"
    assert xcit("predict", packaged_images()[0], "--model", "packaged", "--weights", "mine.safetensors").err == told


def test_predict_without_input_takes_the_packaged_images(xcit):
    done = xcit("predict", "--topk", 3)
    assert (done.status, done.err) == (0, GARMENTS)
    lines = done.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(path) for path in packaged_images()]
    assert len(lines) == 4 * len(packaged_images()) == 40


def test_packaged_images_are_classified_right(xcit):
    name_of = {name.lower().replace("/", "-").replace(" ", "-"): name for name in FASHION_MNIST_CLASSES}
    found = json.loads(xcit("predict", "--json", "-").out)
    assert {Path(row["file"]).stem for row in found} == set(name_of)
    for row in found:
        assert row["classes"][0]["name"] == name_of[Path(row["file"]).stem]


def test_predict_file_folder_and_pattern(xcit, tmp_path):
    shutil.copytree(packaged_images()[0].parent, tmp_path / "pictures" / "deep")
    one = json.loads(xcit("predict", "pictures/deep/bag.png", "--json", "-").out)
    folder = json.loads(xcit("predict", "pictures", "--json", "-").out)
    pattern = json.loads(xcit("predict", "pictures/**/b*.png", "pictures/deep/bag.png", "--json", "-").out)
    assert [Path(row["file"]).name for row in folder] == [path.name for path in packaged_images()]
    assert [row["file"] for row in one] == [row["file"] for row in pattern] == ["pictures/deep/bag.png"]
    alike = next(row for row in folder if row["file"] == one[0]["file"])
    for row in (pattern[0], alike):
        assert [scored["index"] for scored in row["classes"]] == [scored["index"] for scored in one[0]["classes"]]


def test_predict_writes_json_and_csv(xcit, tmp_path):
    assert xcit("predict", "--json", "a.json") == xcit("predict", "--csv", "a.csv")
    in_json = json.loads(Path("a.json").read_text(encoding="utf-8"))
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        in_csv = list(csv.DictReader(file))
    assert in_json == json.loads(xcit("predict", "--json", "-").out)
    assert in_csv == list(csv.DictReader(io.StringIO(xcit("predict", "--csv", "-").out)))
    flat = [(row["file"], rank, c) for row in in_json for rank, c in enumerate(row["classes"], start=1)]
    assert len(flat) == len(in_csv) == 50
    for (file, rank, scored), row in zip(flat, in_csv, strict=True):
        assert (row["file"], row["rank"], row["index"]) == (file, str(rank), str(scored["index"]))
        assert (row["name"], row["error"]) == (scored["name"], "")
        assert float(row["score"]) == pytest.approx(scored["score"], abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_predict_options_change_the_cost_not_the_answer(xcit):
    plain = json.loads(xcit("predict", "--json", "-").out)
    all_classes = json.loads(xcit("predict", "--json", "-", "--topk", 99, "--batch-size", 3, "--device", "cpu").out)
    rough = json.loads(xcit("predict", "--json", "-", "--dtype", "bfloat16").out)
    for one, other, third in zip(plain, all_classes, rough, strict=True):
        assert [scored["index"] for scored in other["classes"][:5]] == [scored["index"] for scored in one["classes"]]
        assert sum(scored["score"] for scored in other["classes"]) == pytest.approx(1, abs=1e-5)
        assert third["classes"][0]["score"] == pytest.approx(one["classes"][0]["score"], abs=0.1)


def make_unreadable(folder: Path) -> list[str]:
    """Writes images and unreadable files alternately; returns the sorted names, and the name of a missing file."""
    good = packaged_images()[0]
    shutil.copy(good, folder / "a.png")
    (folder / "b.png").write_bytes(good.read_bytes()[:200])
    shutil.copy(good, folder / "c.png")
    (folder / "d.jpg").write_text("text")
    shutil.copy(good, folder / "e.png")
    return ["a.png", "b.png", "c.png", "d.jpg", "e.png", "missing.png"]


def test_predict_goes_on_where_an_image_is_unreadable(xcit, tmp_path):
    names = make_unreadable(tmp_path)
    done = xcit("predict", *names, "--topk", 1)
    assert done.status == 1
    assert [line for line in done.out.splitlines() if not line.startswith(" ")] == ["a.png", "c.png", "e.png"]
    errors = done.err.splitlines()
    assert errors[0].startswith("xcit: b.png: ")
    assert errors[1] == "xcit: d.jpg: not an image that can be read (it looks like text)"
    assert errors[2] == "xcit: missing.png: no such file"
    assert errors[3:] == [GARMENTS.rstrip(), "xcit: 3 of 6 images could not be read"]


def test_unreadable_images_in_json_and_csv(xcit, tmp_path):
    names = make_unreadable(tmp_path)
    done = xcit("predict", *names, "--json", "a.json", "--batch-size", 1)
    assert (done.status, done.out, done.err) == (1, "", f"{GARMENTS}xcit: 3 of 6 images could not be read\n")
    rows = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert [row["file"] for row in rows] == names
    assert [("error" in row, "classes" in row) for row in rows] == [
        (bad, not bad) for bad in (False, True, False, True, False, True)
    ]
    assert xcit("predict", *names, "--csv", "a.csv").status == 1
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        errors = [row for row in csv.DictReader(file) if row["error"]]
    assert [(row["file"], row["error"]) for row in errors] == [
        (row["file"], row["error"]) for row in rows if "error" in row
    ]


def test_predict_where_nothing_is_readable(xcit):
    done = xcit("predict", "x.png", "--json", "-")
    assert (done.status, json.loads(done.out)) == (1, [{"file": "x.png", "error": "x.png: no such file"}])


# features


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_features(xcit, suffix):
    path = Path(f"a{suffix}")
    options = ("--out-type", "featmap", "--layers", "0,-1", "--batch-size", 4)
    done = xcit("features", packaged_images()[0].parent, "--out", path, *options)
    assert (done.status, done.err) == (0, GARMENTS)
    assert done.out == f"{path}: 10 images; block_0 [10, 64, 7, 7], block_7 [10, 64, 7, 7]\n"
    names, blocks = read_features(path)
    assert names == [str(image) for image in packaged_images()]
    model: Any = get_model("packaged", pretrained=True)
    found = extract_features(packaged_images(), model, out_type="featmap", layers=(0, -1))
    for index in (0, 7):
        expected = np.stack([features.layers[index] for features in found])
        np.testing.assert_allclose(blocks[f"block_{index}"].reshape(expected.shape), expected, atol=1e-4)


def read_features(path: Path):
    if path.suffix == ".npz":
        with np.load(path) as archive:
            columns = dict(archive)
        return columns.pop("files").tolist(), columns
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads(file.metadata()["files"]), columns
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names[1:]}
    return table.column("file").to_pylist(), columns


def test_features_go_on_where_an_image_is_unreadable(xcit, tmp_path):
    done = xcit("features", *make_unreadable(tmp_path), "--out", "a.npz")
    assert (done.status, done.out) == (1, "a.npz: 3 images; block_7 [3, 64]\n")
    assert [line.split(":")[1].strip() for line in done.err.splitlines()[:3]] == ["b.png", "d.jpg", "missing.png"]
    assert done.err.endswith("xcit: 3 of 6 images could not be read\n")
    assert read_features(Path("a.npz"))[0] == ["a.png", "c.png", "e.png"]


# names of files


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name is text")
def test_name_that_is_no_text(xcit):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(packaged_images()[0], name)
    done = xcit("predict", ".", "missing-" + name)
    assert (done.status, done.out.splitlines()[0]) == (1, r"caf\udce9.png")
    assert r"missing-caf\udce9.png" in done.err
    assert xcit("predict", ".", "--json", "a.json").status == 0
    assert [row["file"] for row in json.loads(Path("a.json").read_text(encoding="utf-8"))] == [name]
    assert xcit("predict", name, "--csv", "a.csv").status == 0
    assert r"caf\udce9.png,1," in Path("a.csv").read_text(encoding="utf-8")
    for suffix in (".npz", ".safetensors", ".parquet"):
        assert xcit("features", name, "--out", f"a{suffix}").status == 0


# convert, verify, fetch


def test_convert_there_and_back_is_bit_for_bit(xcit):
    chain = [("official", ".pth"), ("timm", ".safetensors"), ("mmpretrain", ".pth"), ("xcit", ".safetensors")]
    source, expected = PACKAGED, read_checkpoint(PACKAGED).state
    for to, suffix in chain:
        destination = Path(f"{to}{suffix}")
        done = xcit("convert", source, destination, "--to", to)
        assert (done.status, done.err) == (0, "")
        assert f"-> {destination} ({to}): {len(expected)} tensors" in done.out
        found = read_checkpoint(destination)
        assert found.format == to
        assert found.state.keys() == expected.keys()
        for name, tensor in found.state.items():
            assert tensor.dtype == expected[name].dtype
            assert tensor.numpy().tobytes() == expected[name].numpy().tobytes()
        source = destination
    assert xcit("convert", PACKAGED, "xcit.safetensors", "--to", "timm", "--overwrite").status == 0
    assert read_checkpoint("xcit.safetensors").format == "timm"


def test_convert_to_every_format_and_verify(xcit):
    for to in ("xcit", "official", "timm", "mmpretrain"):
        assert xcit("convert", PACKAGED, f"{to}.safetensors", "--to", to).status == 0
        done = xcit("verify", f"{to}.safetensors")
        assert (done.status, done.err) == (0, "")
        assert "as recorded in the file" in done.out
        assert "pico-6-p4" in done.out
        assert json.loads(xcit("predict", "--json", "-", "--model", f"{to}.safetensors").out) == json.loads(
            xcit("predict", "--json", "-").out
        )


def test_verify_by_name(xcit):
    done = xcit("verify", "packaged")
    assert (done.status, done.err) == (0, "")
    assert dict(line.split(maxsplit=1) for line in done.out.splitlines())["file"] == str(PACKAGED)


def test_fetch_for_a_machine_that_will_be_offline(xcit, monkeypatch, tmp_path):
    """Fetches the official file from a folder to a second folder, which then is the mirror for an empty cache."""
    name = "xcit-nano-12-p16_3rdparty_in1k"
    record = find_checkpoint(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_model(name)
    (tmp_path / "mirror").mkdir()
    save_model(model, tmp_path / "native.safetensors")
    official = next(source.filename for source in record.sources if "fbaipublicfiles" in source.location)
    assert xcit("convert", "native.safetensors", Path("mirror") / official, "--to", "official").status == 0

    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path / "mirror"))
    done = xcit("fetch", "xcit_nano_12_p16", "xcit-nano-12-p16", "--to", "usb")
    assert (done.status, done.err, done.out) == (0, "", f"{name}: usb/{name}.safetensors\n")
    assert xcit("verify", f"usb/{name}.safetensors").status == 0
    assert [path.name for path in Path("mirror").iterdir()] == [official]

    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path / "usb"))
    monkeypatch.setenv("XCIT_CACHE", str(tmp_path / "other"))
    Image.new("RGB", (300, 240), "orange").save("orange.png")
    found = json.loads(xcit("predict", "orange.png", "--model", "xcit-nano-12-p16", "--topk", 1000, "--json", "-").out)
    with torch.inference_mode():
        batch = preprocess(read_image("orange.png"), record.preprocessing)[None]
        expected = model(batch).softmax(dim=-1)[0]
    for scored in found[0]["classes"]:
        assert scored["score"] == pytest.approx(expected[scored["index"]].item(), abs=1e-6)
    assert {scored["name"] for scored in found[0]["classes"]} >= {"goldfish", "tench"}


def test_fetch_goes_on_where_one_is_not_to_be_had(xcit, monkeypatch, tmp_path):
    monkeypatch.setenv("XCIT_MIRROR", str(tmp_path))
    done = xcit("fetch", "xcit-tiny-12-p16", "packaged")
    assert done.status == 1
    assert done.out == f"xcit-pico-fashion-mnist: {PACKAGED}\n"
    assert done.err.startswith("xcit: cannot get the weights of xcit-tiny-12-p16_3rdparty_in1k:")


# test


def test_predict_with_what_was_trained(xcit, trained, colours):
    done = xcit("predict", colours, "--model", trained[0] / "model.safetensors", "--json", "-", "--topk", 1)
    rows = json.loads(done.out)
    assert len(rows) == 30
    right = [row["classes"][0]["name"] == Path(row["file"]).parent.name for row in rows]
    assert sum(right) >= 27


def test_measure_what_was_trained(xcit, trained, colours):
    arguments = ("--data", colours, "--workers", 0, "--out", "out", "--batch-size", 7)
    done = xcit("test", trained[0] / "config.yaml", trained[0] / "model.safetensors", *arguments)
    assert done.status == 0
    found, warning, told = done.err.splitlines()
    assert told == f"xcit: model {trained[0] / 'model.safetensors'} (3 classes)"
    assert found == f"3 classes: blau, grün, rot; 30 images in {colours}"
    assert warning.startswith(f"warning: {colours} has no folder val: all its images are measured")
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    last = json.loads((trained[0] / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (report["top1"], report["top5"]) == (last["top1"], 100)
    assert report["loss"] == pytest.approx(last["val_loss"], abs=1e-5)
    assert f"top-1  {report['top1']:.2f}%" in done.out
    with Path("out/confusion.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == ["blau", "grün", "rot"]
    counts = np.array([[int(count) for count in row[1:]] for row in rows])
    assert counts.sum(axis=1).tolist() == [10, 10, 10]
    assert 100 * counts.trace() / 30 == pytest.approx(report["top1"])
    pytest.importorskip("matplotlib")
    with Image.open("out/confusion.png") as picture:
        assert min(picture.size) > 300


def test_measure_on_some_of_the_classes_in_another_order_of_labels(xcit, trained, colours, tmp_path):
    """Folders are matched by name: without "blau", "grün" is the first folder, but still the model's second class."""
    for name in ("grün", "rot"):
        shutil.copytree(colours / name, tmp_path / "part" / name)
    (tmp_path / "part" / "rot" / "broken.png").write_text("text")
    model = trained[0] / "model.safetensors"
    done = xcit("test", trained[0] / "config.yaml", model, "--data", "part", "--workers", 0)
    assert done.status == 1
    found, warning, *told = done.err.splitlines(keepends=True)
    assert found == "2 classes: grün, rot; 21 images in part\n"
    assert warning.startswith("warning: part has no folder val")
    assert "".join(told) == (
        "xcit: part/rot/broken.png: not an image that can be read (it looks like text)\n"
        f"xcit: model {model} (3 classes)\n"
        "xcit: 1 images could not be read and were not measured\n"
    )
    report = json.loads(Path("runs/test/run/report.json").read_text(encoding="utf-8"))
    assert report["num_images"] == 20
    assert report["top1"] >= 90
    assert report["unreadable"] == ["part/rot/broken.png: not an image that can be read (it looks like text)"]


# interrupts and pipes, in separate processes


def test_interrupt_leaves_the_results_so_far(tmp_path):
    (tmp_path / "many").mkdir()
    for index in range(5000):
        (tmp_path / "many" / f"{index}.png").symlink_to(packaged_images()[0])
    process = start("predict", "many", "--json", "a.json", "--batch-size", 1, stdout=subprocess.PIPE)
    result = tmp_path / "a.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(part.stat().st_size for part in tmp_path.glob(".xcit-*.tmp")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.split()) == ("", ["xcit:", "interrupted"])
    rows = json.loads(result.read_text(encoding="utf-8"))
    assert 0 < len(rows) < 5000
    assert [row["file"] for row in rows] == [f"many/{index}.png" for index in range(len(rows))]
    assert not list(tmp_path.glob(".xcit-*.tmp"))


@pytest.mark.parametrize("arguments", [("--help",), ("predict", "--json", "-")])
def test_reader_that_has_gone(arguments):
    """The reader of the pipe is closed before the command starts, as it may be in `xcit list | head -1`."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = start(*arguments, stdout=write_end)
    os.close(write_end)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, "")


def test_predict_with_weights_of_another_format(xcit, tmp_path):
    weights = tmp_path / "pico.pth"
    assert xcit("convert", fetch("packaged"), weights, "--to", "official").status == 0
    done = xcit("predict", "--model", "xcit-pico-fashion-mnist", "--weights", weights)
    assert done.status == 0
    assert done.out == xcit("predict").out
