"""Tests results of many images in Parquet parts: parts survive a kill, processes share the work, all inputs work."""

import io
import json
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch
from PIL import Image

from xcit.cli.predict import packaged_images
from xcit.explain import class_attention
from xcit.images.preprocess import Preprocessing
from xcit.inference.bulk import MANIFEST, read_manifest, read_parts
from xcit.models import ModelInfo, XCiT, XCiTConfig
from xcit.zoo import save_model

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Writes 39 image files of ten garments, and a text file with the name of an image."""
    folder = tmp_path / "many"
    folder.mkdir()
    garments = packaged_images()
    for index in range(40):
        (folder / f"{index}.png").symlink_to(garments[index % len(garments)])
    (folder / "13.png").unlink()
    (folder / "13.png").write_text("text")
    return folder


@pytest.fixture(scope="module")
def attentive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a class token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XCiT(XCiTConfig(patch_size=8, embed_dim=16, depth=1, num_heads=2, cls_depth=1, num_classes=3))
    model.info = ModelInfo(name="attentive", preprocessing=Preprocessing())
    path = tmp_path_factory.mktemp("models") / "attentive.safetensors"
    save_model(model, path)
    return path


GARMENTS = "xcit: model xcit-pico-fashion-mnist, which only knows garments (10 classes)\n"
PREDICT = ("predict", "many", "--batch-size", 4, "--part-size", 8, "--device", "cpu")


def rows(folder: str | Path) -> list[dict]:
    return read_parts(Path(folder)).to_pylist()


def test_predictions(xcit, many) -> None:
    done = xcit(*PREDICT, "--out", "parts")
    assert done.status == 1
    assert done.out == "parts: 39 images in 5 Parquet parts\n"
    assert "many/13.png: not an image that can be read" in done.err
    assert done.err.endswith("xcit: 1 of 40 images could not be read\n")
    assert xcit("predict", "many", "--json", "a.json").status == 1
    want = json.loads(Path("a.json").read_text())
    found = rows("parts")
    assert (
        [row["file"] for row in found] == [row["file"] for row in want] == [f"many/{index}.png" for index in range(40)]
    )
    for one, other in zip(found, want, strict=True):
        assert one["error"] == other.get("error")
        if one["error"] is None:
            assert [c["name"] for c in one["classes"]] == [c["name"] for c in other["classes"]]
            assert [c["score"] for c in one["classes"]] == pytest.approx(
                [c["score"] for c in other["classes"]], abs=1e-5
            )
    # A reader of Parquet folders reads all parts, and ignores the manifest.
    assert pq.read_table("parts").to_pylist() == found
    manifest = read_manifest(Path("parts"))
    assert (manifest["verb"], manifest["model"], manifest["complete"]) == ("predict", "packaged", True)
    assert manifest["arguments"] == {"topk": 5, "dtype": "float32"}
    assert [part["images"] for part in manifest["parts"].values()] == [8] * 5
    assert set(manifest["versions"][0]) == {"xcit", "torch"}


def test_what_is_there_is_kept_and_told(xcit, many) -> None:
    assert xcit(*PREDICT, "--out", "parts").status == 1
    before = {path.name: path.read_bytes() for path in Path("parts").iterdir()}
    for more, message in (
        ((), "parts: already contains results: continue with --resume, or choose another folder"),
        (
            ("--resume", "--topk", 3),
            "(arguments {'topk': 5, 'dtype': 'float32'}, not {'topk': 3, 'dtype': 'float32'}",
        ),
        (("--resume", "--part-size", 9), "(images_a_part 8, not 9): choose another folder"),
        (("--resume", "--model", "xcit-nano-12-p16"), "xcit-nano-12-p16"),
    ):
        done = xcit(*PREDICT, "--out", "parts", *more)
        assert done.status == 2
        assert message in done.err
    (many / "new.png").symlink_to(packaged_images()[0])
    assert "(num_units 5, not 6)" in xcit(*PREDICT, "--out", "parts", "--resume").err
    (many / "39.png").unlink()
    assert "another run (other images)" in xcit(*PREDICT, "--out", "parts", "--resume").err
    assert {path.name: path.read_bytes() for path in Path("parts").iterdir()} == before
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    done = xcit(*PREDICT, "--out", "full")
    assert (done.status, done.out) == (2, "")
    assert "full: already exists, but contains no results to resume" in done.err
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_a_run_that_failed_at_once_does_not_block_its_retry(xcit, many) -> None:
    command = ("features", "many", "--out", "parts", "--part-size", 8)
    assert xcit(*command, "--layers", "0").status == 2  # block 0 has no class token
    assert xcit(*command).status == 1
    assert len(rows("parts")) == 40


def test_a_kill_costs_no_part_that_is_done(xcit, start, many) -> None:
    assert xcit(*PREDICT, "--out", "whole").status == 1
    for number_of_parts in (1, 3):
        killed = start("-m", "xcit", *PREDICT, "--batch-size", 1, "--out", "parts", "--resume")
        while killed.running and len(list(Path("parts").glob("part-*"))) < number_of_parts:
            time.sleep(0.001)
        killed.send(signal.SIGKILL)
        assert killed.finish().status == -signal.SIGKILL
        manifest = read_manifest(Path("parts"))
        assert not manifest["complete"]
        for name in manifest["parts"]:  # a file with its final name is complete
            assert pq.read_table(Path("parts") / name).num_rows == 8
    kept = {name: (Path("parts") / name).stat().st_mtime_ns for name in manifest["parts"]}
    done = xcit(*PREDICT, "--out", "parts", "--resume")
    assert (done.status, done.out) == (1, "parts: 39 images in 5 Parquet parts\n")
    for name, time_written in kept.items():
        assert (Path("parts") / name).stat().st_mtime_ns == time_written
    names = [[(row["file"], row["error"]) for row in rows(folder)] for folder in ("parts", "whole")]
    assert names[0] == names[1]
    scores = [[c["score"] for row in rows(folder) for c in row["classes"] or ()] for folder in ("parts", "whole")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # rounding: the batches were different
    again = xcit(*PREDICT, "--out", "parts", "--resume")
    assert (again.status, again.out) == (1, done.out)


def test_two_processes_divide_the_images(xcit, start, many) -> None:
    assert xcit(*PREDICT, "--out", "one").status == 1
    done = start("-m", "xcit", *PREDICT, "--out", "two", processes=2).finish()
    assert done.status == 0  # torchrun would treat another status as the failure of a process
    assert done.out == "two: 39 images in 5 Parquet parts\n"
    assert done.err.endswith("xcit: 1 of 40 images could not be read\n")
    assert done.err.count("13.png: not an image that can be read") == 1  # printed by only one process
    assert done.err.count(GARMENTS) == 1
    assert rows("two") == rows("one")
    again = start("-m", "xcit", *PREDICT, "--out", "two", processes=2).finish()
    assert again.status == 2
    assert again.err.count("two: already contains results") <= 1
    # One process resumes a run that two processes began.
    manifest = read_manifest(Path("two"))
    gone = sorted(manifest["parts"])[1]
    del manifest["parts"][gone]
    (Path("two") / gone).unlink()
    manifest |= {"finished": [0, 2, 3, 4], "complete": False}
    (Path("two") / MANIFEST).write_text(json.dumps(manifest))
    assert xcit(*PREDICT, "--out", "two", "--resume").status == 1
    assert rows("two") == rows("one")
    for command in (("predict", "many", "--csv", "a.csv"), ("features", "many", "--out", "a.npz")):
        small = start("-m", "xcit", *command, processes=2).finish()
        assert small.status == 2
        assert "several processes can write only Parquet parts" in small.err
        assert not Path(command[-1]).exists()


def test_features(xcit, many) -> None:
    done = xcit("features", "many", "--out", "parts/", "--part-size", 16, "--out-type", "featmap", "--layers", "1,3")
    assert done.status == 1
    assert xcit("features", "many", "--out", "a.npz", "--out-type", "featmap", "--layers", "1,3").status == 1
    want = np.load("a.npz")
    found = [row for row in rows("parts") if row["error"] is None]
    assert [row["file"] for row in found] == list(want["files"])
    for block in (1, 3):
        arrays = [np.reshape(row[f"block_{block}"], row[f"block_{block}_shape"]) for row in found]
        np.testing.assert_allclose(np.stack(arrays), want[f"block_{block}"], atol=1e-4)


def test_a_part_of_which_no_image_is_readable(xcit, many) -> None:
    done = xcit("features", "nosuch.png", "many/0.png", "--out", "parts", "--part-size", 1)
    assert done.status == 1
    assert [row["block_7"] is None for row in rows("parts")] == [True, False]


def test_segment_and_detect(xcit, tmp_path, many) -> None:
    from small_models import build

    from xcit.data.coco_masks import decode_mask
    from xcit.images.preprocess import SegmentationPreprocessing
    from xcit.models import Segmenter, SegmenterInfo

    model = build("sem-fpn")
    assert isinstance(model, Segmenter)
    model.info = SegmenterInfo(name="small", preprocessing=SegmentationPreprocessing(long_side=48, short_side=32))
    save_model(model, tmp_path / "segmenter.safetensors")
    save_model(build("detector"), tmp_path / "detector.safetensors")
    inputs = ("many/0.png", "many/13.png", "many/2.png")
    segment = ("segment", *inputs, "--model", "segmenter.safetensors")
    assert xcit(*segment, "--out", "maps").status == 1
    assert xcit(*segment, "--out", "parts", "--parquet", "--part-size", 2).status == 1
    found = rows("parts")
    assert [row["file"] for row in found] == list(inputs)
    areas = json.loads(Path("maps/areas.json").read_text())
    for row in (found[0], found[2]):
        name = Path(row["file"]).stem
        labels = np.asarray(Image.open(io.BytesIO(row["labels"])))
        np.testing.assert_array_equal(labels, np.asarray(Image.open(f"maps/{name}-labels.png")))
        assert labels.shape == (row["height"], row["width"])
        assert {one["name"]: one["share"] for one in row["areas"]} == areas[row["file"]]
    detect = ("detect", *inputs, "--model", "detector.safetensors", "--score", 0)
    assert xcit(*detect, "--out", "boxes", "--no-pictures").status == 1
    assert xcit(*detect, "--out", "found", "--parquet").status == 1
    content = json.loads(Path("boxes/detections.json").read_text())
    objects = [one for row in rows("found") if row["error"] is None for one in row["objects"]]
    assert len(objects) == len(content["annotations"]) > 0
    for one, other in zip(objects, content["annotations"], strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        assert one["counts"] == other["segmentation"]["counts"]
    assert decode_mask({"size": [28, 28], "counts": objects[0]["counts"]}, (28, 28)).shape == (28, 28)
    for verb in (segment, detect):
        done = xcit(*verb, "--out", "more", "--resume")
        assert (done.status, done.out) == (2, "")
        assert "--resume is only for Parquet parts: give --parquet" in done.err


def test_every_kind_of_input_gives_the_same(xcit, tmp_path, fashion_mnist) -> None:
    images = packaged_images()[:3]
    for path in images:
        shutil.copy(path, tmp_path / path.name)
    names = [path.name for path in images]
    Path("list.txt").write_text("".join(f"{name}\n" for name in names))
    with tarfile.open("a.tar", "w") as archive:  # only images, no labels
        for name in names:
            archive.add(name)
    pq.write_table(
        pa.table({"image": [{"bytes": path.read_bytes(), "path": None} for path in images]}), "records.parquet"
    )
    pq.write_table(pa.table({"picture": [path.read_bytes() for path in images], "raw": [b""] * 3}), "bytes.parquet")
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in (*names, "a.tar", "records.parquet", "list.txt"):
        memory.pipe(f"/bulk/{name}", Path(name).read_bytes())
    assert xcit("predict", *names, "--json", "want.json").status == 0
    want = [row["classes"] for row in json.loads(Path("want.json").read_text())]
    kinds = (
        ("@list.txt",),
        ("@memory://bulk/list.txt",),
        ("a.tar",),
        ("wds:a.tar",),
        ("records.parquet",),
        ("bytes.parquet?image=picture",),
        ("memory://bulk/*.png",),
        ("memory://bulk/",),
        (f"memory://bulk/{names[0]}", *(f"memory://bulk/{name}" for name in names[1:])),
        ("memory://bulk/a.tar",),
        ("memory://bulk/records.parquet",),
    )
    for number, inputs in enumerate(kinds):
        done = xcit("predict", *inputs, "--out", f"parts{number}", "--part-size", 2)
        *left_out, told = done.err.splitlines(keepends=True)
        assert (done.status, told) == (0, GARMENTS), inputs
        beside = ["xcit: left out: 3 files without an image suffix: "] * (inputs == ("memory://bulk/",))
        assert [line[:49] for line in left_out] == beside, inputs
        found = rows(f"parts{number}")
        assert [row["classes"][0]["name"] for row in found] == [classes[0]["name"] for classes in want], inputs
        # Output formats with a single file accept these inputs too.
        assert xcit("predict", *inputs, "--json", "small.json").status == 0
        assert [row["classes"][0]["name"] for row in json.loads(Path("small.json").read_text())] == [
            row["classes"][0]["name"] for row in found
        ]
    memory.rm("/bulk", recursive=True)


def test_a_shard_is_gone_on_with_in_its_middle(xcit, many) -> None:
    with tarfile.open("a.tar", "w") as archive:
        for index in range(10):
            archive.add((many / f"{index}.png").resolve(), f"{index}.png")
    command = ("predict", "a.tar", "--part-size", 4, "--out")
    assert xcit(*command, "whole").status == 0
    shutil.copytree("whole", "parts")
    manifest = read_manifest(Path("parts"))
    del manifest["parts"]["part-00000-00002.parquet"]
    manifest |= {"finished": [], "complete": False}
    (Path("parts") / MANIFEST).write_text(json.dumps(manifest))
    (Path("parts") / "part-00000-00002.parquet").unlink()
    assert xcit(*command, "parts", "--resume").status == 0
    assert [row["file"] for row in rows("parts")] == [f"a.tar/{index}.png" for index in range(10)]
    assert [row["file"] for row in rows("whole")] == [row["file"] for row in rows("parts")]


def test_a_data_set(xcit, fashion_mnist, monkeypatch) -> None:
    from xcit.data import named

    every = named.open_fashion_mnist
    monkeypatch.setattr(
        "xcit.data.classification.open_fashion_mnist",
        lambda split: [every(split)[index] for index in range(6 if split == "val" else 4)],
    )
    assert xcit("predict", "fashion-mnist", "--out", "val", "--part-size", 4).status == 0
    assert xcit("predict", "fashion-mnist", "--split", "train", "--out", "train").status == 0
    assert [row["file"] for row in rows("val")] == [f"Fashion-MNIST val image {index}" for index in range(6)]
    assert [row["file"] for row in rows("train")] == [f"Fashion-MNIST train image {index}" for index in range(4)]


def test_without_pyarrow_it_is_one_line(many, start) -> None:
    program = Path("without.py")
    program.write_text("import sys; sys.modules['pyarrow'] = None; from xcit.cli import main; main()")
    for command in (PREDICT, ("features", "many")):
        done = start(program, *command, "--out", "parts").finish()
        assert (done.status, done.err) == (2, "xcit: error: Parquet needs pyarrow: pip install 'xcit[all]'\n")
        assert not Path("parts").exists()


def test_attention(xcit, many, attentive) -> None:
    command = ("attention", "many", "--model", attentive, "--out", "parts", "--parquet", "--part-size", 16)
    done = xcit(*command)
    assert (done.status, done.out) == (1, "parts: 39 images in 3 Parquet parts\n")
    assert read_manifest(Path("parts"))["arguments"] == {"block": -1, "dtype": "float32"}
    found = {row["file"]: row for row in rows("parts")}
    assert [name for name, row in found.items() if row["error"]] == ["many/13.png"]
    (want,) = class_attention(many / "7.png", attentive)
    row = found["many/7.png"]
    assert (row["height"], row["width"], row["block"], row["patch_size"]) == (28, 28, 0, 8)
    heads = np.array(row["heads"], np.float32).reshape(row["heads_shape"])
    np.testing.assert_allclose(heads, want.heads, atol=1e-6)
    np.testing.assert_allclose(row["class_token"], want.class_token, atol=1e-6)
    # A finished run can be resumed. Options for results that Parquet parts can't contain are refused.
    assert xcit(*command, "--resume").out == done.out
    for more in (("--xca",), ("--tiff",), ("--arrays",), ("--threshold", 0.5), ("--full-size",)):
        refused = xcit(*command, *more)
        assert refused.status == 2 and more[0] in refused.err and refused.err.count("\n") == 1
    assert "give --parquet" in xcit(*command[:6], "--resume").err


def turned(path: Path) -> Path:
    """Writes a picture of 24 x 40 pixels with an EXIF orientation; upright, it has 40 x 24 pixels."""
    pixels = np.zeros((40, 24, 3), np.uint8)
    pixels[:10], pixels[10:20, :12] = (250, 20, 20), (20, 20, 250)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def test_pixels_as_they_are_stored(xcit, attentive, tmp_path) -> None:
    turned(tmp_path / "a.png")
    with Image.open("a.png") as image:
        Image.fromarray(np.asarray(image)).save("stored.png")
        Image.fromarray(np.asarray(image.transpose(Image.Transpose.ROTATE_270))).save("upright.png")
    with tarfile.open("a.tar", "w") as archive:
        archive.add("a.png")
    pq.write_table(pa.table({"image": [Path("a.png").read_bytes()]}), "a.parquet")

    def scores(*arguments: object) -> list[float]:
        assert xcit("predict", *arguments, "--json", "a.json").status == 0
        return [one["score"] for one in json.loads(Path("a.json").read_text())[0]["classes"]]

    want = {name: scores(f"{name}.png") for name in ("stored", "upright")}
    assert want["stored"] != want["upright"]
    for word in ("a.png", "a.tar", "a.parquet", Path("a.png").resolve().as_uri()):
        assert scores(word) == want["upright"]
        assert scores(word, "--ignore-exif") == want["stored"]
    for more in ((), ("--full-size",)):
        own = scores("stored.png", *more)
        assert scores("a.png", "--ignore-exif", *more) == own != scores("a.png", *more)
    for name, more in (("upright", ()), ("stored", ("--ignore-exif",))):
        for file in ("a.png", f"{name}.png"):
            place = f"f-{file}"
            options = more if file == "a.png" else ()
            assert xcit("features", file, "--out", f"{place}.npz", *options).status == 0
            assert xcit("attention", file, "--model", attentive, "--out", place, "--no-figures", *options).status == 0
        with np.load("f-a.png.npz") as found, np.load(f"f-{name}.png.npz") as expected:
            keys = [key for key in found.files if found[key].dtype.kind == "f"]
            assert keys and all(np.array_equal(found[key], expected[key]) for key in keys)
        for file in ("a.png", f"{name}.png"):
            with Image.open(f"f-{file}/{Path(file).stem}-overlay.png") as image:
                assert image.size == {"upright": (40, 24), "stored": (24, 40)}[name]


@pytest.mark.parametrize(
    ("verb", "kind", "ending"), [("segment", "upernet", "labels"), ("detect", "detector", "detections")]
)
def test_label_maps_and_boxes_of_stored_pixels(xcit, tmp_path, verb, kind, ending) -> None:
    if verb == "detect":
        pytest.importorskip("faster_coco_eval")
    save_model(small_models.build(kind), tmp_path / "model.safetensors")
    turned(tmp_path / "a.png")
    for options, size in (((), (40, 24)), (("--ignore-exif",), (24, 40))):
        command = (verb, "a.png", "--model", "model.safetensors", *options, "--device", "cpu", "--size", 32)
        assert xcit(*command, "--out", "files").status == 0
        with Image.open(f"files/a-{ending}.png") as image:  # pictures of small images are enlarged
            assert image.width * size[1] == image.height * size[0]
        parts = f"parts{len(options)}"
        assert xcit(*command, "--out", parts, "--parquet").status == 0
        assert [(row["width"], row["height"]) for row in rows(parts)] == [size]
