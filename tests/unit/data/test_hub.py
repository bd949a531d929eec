"""Tests folders in the formats of the Hugging Face Hub, as data sets and as streams; no test accesses the Hub."""

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xcit.data.classification import LabelledImages, open_labelled_images
from xcit.data.fingerprint import fingerprint
from xcit.data.loader import LoaderConfig
from xcit.data.stream_loader import StreamTrainLoader, stream_evaluation_batches
from xcit.data.streams import open_stream
from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing

datasets = pytest.importorskip("datasets")
from pyarrow import Table, parquet  # noqa: E402

# torch warns if a loader has more workers than the machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

Png = Callable[[int], bytes]
CLASSES = ["cat", "dog", "frog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def features(**columns: Any) -> Any:
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)} | columns)


def write(path: Path, images: Sequence[Any], labels: Sequence[Any], types: Any = None, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [image and {"bytes": image, "path": None} for image in images], "label": list(labels)} | columns
    table = datasets.Dataset.from_dict(rows, features=types or features()).with_format("arrow")[:]
    parquet.write_table(table, path, row_group_size=2)


@pytest.fixture
def folder(tmp_path: Path, png: Png) -> Path:
    """Writes two training files with 3 and 2 images, and a validation file with 2."""
    root = tmp_path / "images"
    write(root / "data" / "train-00000-of-00002.parquet", [png(0), png(1), png(2)], [0, 1, 2])
    write(root / "data" / "train-00001-of-00002.parquet", [png(3), png(4)], [0, 1])
    write(root / "data" / "validation-00000-of-00001.parquet", [png(10), png(11)], [2, 2])
    return root


def contents(images: LabelledImages) -> list[tuple[int, int]]:
    """Returns the grey level and the label of each image."""
    pairs = [images[index] for index in range(len(images))]
    return [(int(np.asarray(image)[0, 0, 0]), label) for image, label in pairs]


def streamed(stream: Any) -> list[list[tuple[int, int]]]:
    """Returns the grey level and the label of each image, for each shard of a stream."""
    shards = [stream.shard(index) for index in range(stream.num_shards)]
    return [[(int(np.asarray(sample.read())[0, 0, 0]), sample.label) for sample in shard] for shard in shards]


def error_of(data: str, split: Any = "train") -> str:
    with pytest.raises(XCiTError) as caught:
        open_stream(data, split) if data.startswith("hf-stream:") else open_labelled_images(data, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_of_parquet_files(folder: Path) -> None:
    train, val = (open_labelled_images(f"hf:{folder}", split) for split in ("train", "val"))
    assert train.class_ids == val.class_ids == tuple(CLASSES)
    assert contents(train) == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)]
    assert contents(val) == [(10, 2), (11, 2)]
    assert val.image_name(1) == f"hf:{folder} validation row 1"


def test_the_same_as_a_stream(folder: Path) -> None:
    train, val = (open_stream(f"hf-stream:{folder}", split) for split in ("train", "val"))
    assert (train.num_images, train.num_shards, train.class_ids) == (5, 2, tuple(CLASSES))
    assert streamed(train) == [[(0, 0), (1, 1), (2, 2)], [(3, 0), (4, 1)]]
    assert (val.num_images, streamed(val)) == (2, [[(10, 2), (11, 2)]])
    assert streamed(pickle.loads(pickle.dumps(train))) == streamed(train)  # pickled, as it is sent to a worker
    assert open_stream(f"hf-stream:{folder}#7", "train").num_images == 7
    assert next(val.shard(0)).name == f"hf-stream:{folder} validation shard 0 row 0"


@pytest.mark.parametrize("saved", ["splits", "one"])
def test_a_folder_of_save_to_disk(tmp_path: Path, png: Png, saved: str) -> None:
    rows = {"image": [{"bytes": png(grey), "path": None} for grey in range(4)], "label": [0, 1, 2, 0]}
    train = datasets.Dataset.from_dict(rows, features=features())
    (train if saved == "one" else datasets.DatasetDict(train=train)).save_to_disk(str(tmp_path / "saved"))
    expected = [(0, 0), (1, 1), (2, 2), (3, 0)]
    assert contents(open_labelled_images(f"hf:{tmp_path / 'saved'}", "train")) == expected
    stream = open_stream(f"hf-stream:{tmp_path / 'saved'}", "train")
    assert (stream.num_images, stream.num_shards) == (4, 4)
    assert streamed(stream) == [[pair] for pair in expected]


def test_pictures_are_read_as_any_other(tmp_path: Path) -> None:
    """Images are upright, and transparent pixels are white. The datasets library decodes images in another way."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    turned, clear = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(clear, "PNG")
    write(tmp_path / "images" / "train.parquet", [turned.getvalue(), clear.getvalue()], [0, 1])
    images = open_labelled_images(f"hf:{tmp_path / 'images'}", "train")
    stream = open_stream(f"hf-stream:{tmp_path / 'images'}", "train")
    for upright, white in ((images[0][0], images[1][0]), [sample.read() for sample in stream.shard(0)]):
        assert np.array_equal(np.asarray(upright), pixels[::-1, ::-1])
        assert (white.mode, white.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_tables_that_the_library_did_not_write(tmp_path: Path, png: Png, form: str) -> None:
    files: list[Any] = [png(grey) for grey in range(3)]
    column = [{"bytes": file, "path": "a.png"} for file in files] if form == "struct" else files
    (tmp_path / "images").mkdir()
    parquet.write_table(Table.from_pydict({"picture": column, "label": [2, 0, 2]}), tmp_path / "images/train.parquet")
    images = open_labelled_images(f"hf:{tmp_path / 'images'}?image=picture", "train")
    assert images.class_ids == ("0", "1", "2")
    assert contents(images) == [(0, 2), (1, 0), (2, 2)]
    data = f"hf-stream:{tmp_path / 'images'}?image=picture"
    assert "its labels are numbers without names" in error_of(data)
    stream = open_stream(data, "train", num_classes=4)
    assert stream.class_ids == ("0", "1", "2", "3")
    assert streamed(stream) == [[(0, 2), (1, 0), (2, 2)]]
    (tmp_path / "images" / "classes.txt").write_text("cat\ndog\nfrog\n")
    assert open_stream(data, "train").class_ids == open_labelled_images(f"hf:{data[10:]}", "train").class_ids
    assert open_stream(data, "train").class_ids == tuple(CLASSES)


def test_labels_that_are_texts(tmp_path: Path, png: Png) -> None:
    types = features(label=datasets.Value("string"))
    write(tmp_path / "images" / "train.parquet", [png(0), png(1), png(2)], ["dog", "cat", "dog"], types)
    write(tmp_path / "images" / "test.parquet", [png(3), png(4)], ["dog", "bird"], types)
    data = f"hf:{tmp_path / 'images'}"
    train, val = open_labelled_images(data, "train"), open_labelled_images(data, "val")
    assert train.class_ids == val.class_ids == ("cat", "dog")  # classes of the training images
    assert contents(train) == [(0, 1), (1, 0), (2, 1)]
    assert val[0][1] == 1
    with pytest.raises(XCiTError, match="test row 1: its label 'bird' is not one of the 2 classes"):
        val[1]
    assert "a stream can't list all of them: open it as hf:" in error_of(f"hf-stream:{tmp_path / 'images'}")
    (tmp_path / "images" / "classes.txt").write_text("dog\ncat\n")
    stream = open_stream(f"hf-stream:{tmp_path / 'images'}", "train")
    assert streamed(stream) == [[(0, 0), (1, 1), (2, 0)]]


@pytest.mark.parametrize(("image", "label"), [("img", "labels"), ("image", "fine_label"), ("img", "label")])
def test_columns_are_known_by_the_names_that_people_use(tmp_path: Path, png: Png, image: str, label: str) -> None:
    types = {image: datasets.Image(), label: datasets.ClassLabel(names=CLASSES), "thumb": datasets.Image()}
    types["coarse_label"] = datasets.ClassLabel(names=["pet", "wild"])
    file = {"bytes": png(5), "path": None}
    rows = {image: [file], label: [2], "thumb": [file], "coarse_label": [0]}
    (tmp_path / "images").mkdir()
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(types)).with_format("arrow")[:]
    parquet.write_table(table, tmp_path / "images" / "train.parquet")
    assert contents(open_labelled_images(f"hf:{tmp_path / 'images'}", "train")) == [(5, 2)]
    assert streamed(open_stream(f"hf-stream:{tmp_path / 'images'}", "train")) == [[(5, 2)]]


def test_columns_that_are_not_clear_are_named_and_can_be_chosen(tmp_path: Path, png: Png) -> None:
    types = features(
        img=datasets.Image(), fine_label=datasets.ClassLabel(names=["pet", "wild"]), id=datasets.Value("int64")
    )
    masks = [{"bytes": png(7), "path": None}]
    write(tmp_path / "images" / "train.parquet", [png(0)], [2], types, img=masks, fine_label=[1], id=[3])
    data = f"hf:{tmp_path / 'images'}"
    assert error_of(data) == (
        f"{data}: it is not clear which column has the images; the columns are image, label, img, fine_label, id; "
        f"name the column as in {data}?image=COLUMN"
    )
    assert "it is not clear which column has the labels" in error_of(f"{data}?image=img")
    assert "there is no column fine; the columns are" in error_of(f"{data}?image=img&label=fine")
    assert "the column img has no class labels" in error_of(f"{data}?image=image&label=img")
    assert "the column id has no images: it is of type" in error_of(f"{data}?image=id&label=label")
    images = open_labelled_images(f"{data}?image=img&label=fine_label", "train")
    assert (contents(images), images.class_ids) == ([(7, 1)], ("pet", "wild"))
    stream = open_stream(f"hf-stream:{tmp_path / 'images'}?image=image&label=label#1", "train")
    assert streamed(stream) == [[(0, 2)]]


def test_columns_of_no_known_name(tmp_path: Path, png: Png) -> None:
    (tmp_path / "images").mkdir()
    parquet.write_table(Table.from_pydict({"picture": [png(0)], "y": [0]}), tmp_path / "images" / "train.parquet")
    for kind in ("hf", "hf-stream"):
        data = f"{kind}:{tmp_path / 'images'}"
        assert error_of(data) == (
            f"{data}: it is not clear which column has the images; the columns are picture, y; "
            f"name the column as in {data}?image=COLUMN"
        )
        assert error_of(f"{data}?image=picture").endswith(f"name the column as in {data}?label=COLUMN")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("hf:/no/such/folder", "hf:/no/such/folder: no such folder, and not a valid name of a data set"),
        ("hf:a/b?split=x", "hf:a/b?split=x: must be of the form hf:NAME, or hf:NAME?config=NAME"),
        ("hf:a/b#12", "must be of the form hf:NAME"),
        ("hf:", "must be of the form hf:NAME"),
        ("hf-stream:a/b#many", "must be of the form hf-stream:NAME"),
        ("hf:nobody/nothing", "hf:nobody/nothing: no such folder, and no such data set on the Hugging Face Hub ("),
    ],
)
def test_what_is_not_there(data: str, message: str) -> None:
    assert message in error_of(data)


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for kind in ("hf", "hf-stream"):
        assert error_of(f"{kind}:{folder}").endswith("needs datasets: pip install 'xcit[hub]'")


def test_a_split_that_is_not_there(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "images" / "train.parquet", [png(0)], [0])
    for kind in ("hf", "hf-stream"):
        assert error_of(f"{kind}:{tmp_path / 'images'}", "val").startswith(
            f"{kind}:{tmp_path / 'images'}: no split validation or val or valid or test, only train; name the files"
        )


def test_unreadable_rows_are_named(tmp_path: Path, png: Png) -> None:
    write(tmp_path / "images" / "train.parquet", [b"<html>", None, png(2), png(3)], [0, 1, -1, 2])
    data = str(tmp_path / "images")
    reasons = ["row 0: not an image that can be read", "row 1: there is no image", "row 2: its label -1 is not one of"]
    images = open_labelled_images(f"hf:{data}", "train")
    samples = list(open_stream(f"hf-stream:{data}", "train").shard(0))
    for index, reason in enumerate(reasons):
        with pytest.raises(XCiTError, match=reason):
            images[index]
        with pytest.raises(XCiTError, match=reason):
            samples[index].read()
    assert (images[3][1], samples[3].label) == (2, 2)


def test_images_in_files_beside_the_table(tmp_path: Path, png: Png) -> None:
    """The datasets library represents class folders as a table with the paths of the images."""
    for number, name in enumerate(("cat/a.png", "dog/b.png")):
        path = tmp_path / "images" / "train" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(png(number))
    data = f"hf-stream:{tmp_path / 'images'}"
    assert "the number of images is not known: add it to the name" in error_of(data)
    assert streamed(open_stream(f"{data}#2", "train")) == [[(0, 0), (1, 1)]]
    images = open_labelled_images(f"hf:{tmp_path / 'images'}", "train")
    assert (contents(images), images.class_ids) == ([(0, 0), (1, 1)], ("cat", "dog"))
    path.unlink()
    with pytest.raises(XCiTError, match=r"train row 1: .*b.png cannot be read \(No such file or directory\)"):
        images[1]


def test_a_damaged_file_is_one_unreadable_sample(folder: Path) -> None:
    stream = open_stream(f"hf-stream:{folder}#5", "train")
    path = folder / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    (sample,) = stream.shard(1)
    with pytest.raises(XCiTError, match=r"train shard 1: damaged after row 0 \(Arrow"):
        sample.read()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_in_a_loader(folder: Path, num_workers: int) -> None:
    stream = open_stream(f"hf-stream:{folder}", "train")
    spec = Preprocessing(image_size=4, resize_to=4)
    batches = list(stream_evaluation_batches(stream, spec, batch_size=2, num_workers=num_workers))
    assert sorted(torch.cat([labels for _, labels, _ in batches]).tolist()) == [0, 0, 1, 1, 2]
    ours = StreamTrainLoader(
        stream,
        lambda image: torch.tensor(np.asarray(image)[0, 0, 0]),
        LoaderConfig(batch_size=1, seed=0, num_workers=num_workers),
        shuffle_buffer=2,
    )
    whole = [int(images) for images, _ in ours.batches(0)]
    assert len(whole) == 5
    if num_workers == 0:
        assert sorted(whole) == [0, 1, 2, 3, 4]
    assert [int(images) for images, _ in ours.batches(0, 3)] == whole[3:]


def test_a_split_has_a_fingerprint_until_its_file_changes(folder: Path, png: Png) -> None:
    def found(split: Any) -> str | None:
        return fingerprint(open_labelled_images(f"hf:{folder}", split))

    before = found("train")
    assert before is not None
    assert found("train") == before
    assert found("val") not in (before, None)
    write(folder / "data" / "train-00001-of-00002.parquet", [png(3), png(5)], [0, 1])
    assert found("train") not in (before, None)
