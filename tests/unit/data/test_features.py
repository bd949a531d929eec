import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xcit.data.features import SUFFIXES, open_feature_file
from xcit.errors import XCiTError

NAMES = ["b.png", "folder/ä, ö — 日本.jpg", 'with "quotes"\n.png']


def images(num_images: int, seed: int = 0):
    """Returns random features for each image: a class token of block 7, and a feature map of block 3."""
    draw = np.random.default_rng(seed)
    return [
        {7: draw.normal(size=(6,)).astype(np.float32), 3: draw.normal(size=(6, 2, 3)).astype(np.float32)}
        for _ in range(num_images)
    ]


def write(path: Path, names, layers):
    with open_feature_file(path) as file:
        for name, features in zip(names, layers, strict=True):
            file.add(name, features)
        return dict(file.shapes)


def read(path: Path):
    """Returns the names, and the arrays by column, as the format's own library reads them."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
        return columns.pop("files").tolist(), columns
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads(file.metadata()["files"]), columns
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    columns = {}
    for name in table.column_names[1:]:
        shape = json.loads(table.schema.field(name).metadata[b"shape"])
        rows = table.column(name).to_pylist()
        columns[name] = np.array(rows, np.float32).reshape(len(rows), *shape)
    return table.column("file").to_pylist(), columns


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_back_equal(suffix, tmp_path):
    layers = images(len(NAMES))
    path = tmp_path / f"features{suffix}"
    shapes = write(path, NAMES, layers)
    names, columns = read(path)
    assert names == NAMES
    assert set(columns) == {"block_3", "block_7"}
    for index in (3, 7):
        column = columns[f"block_{index}"]
        assert column.dtype == np.float32
        np.testing.assert_array_equal(column, np.stack([features[index] for features in layers]))
        assert shapes[f"block_{index}"] == column.shape
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_of_more_than_one_group_of_rows(tmp_path):
    draw = np.random.default_rng(1)
    layers = [{0: draw.normal(size=(2, 2)).astype(np.float32)} for _ in range(1024 + 3)]
    names = [f"{index}.png" for index in range(len(layers))]
    write(tmp_path / "x.parquet", names, layers)
    found, columns = read(tmp_path / "x.parquet")
    assert found == names
    np.testing.assert_array_equal(columns["block_0"], np.stack([features[0] for features in layers]))


@pytest.mark.parametrize("num_images", [0, 1024])
def test_parquet_where_the_last_group_is_empty(num_images, tmp_path):
    names = [str(index) for index in range(num_images)]
    write(tmp_path / "x.parquet", names, [{0: np.zeros(1, np.float32)}] * num_images)
    assert read(tmp_path / "x.parquet")[0] == names


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_images(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    assert write(path, [], []) == {}
    assert read(path) == ([], {})


def test_names_of_no_images_are_still_text(tmp_path):
    write(tmp_path / "x.npz", [], [])
    assert np.load(tmp_path / "x.npz")["files"].dtype.kind == "U"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_name_that_is_no_text(suffix, tmp_path):
    """File names are bytes. Python represents bytes that are not UTF-8 by lone surrogates."""
    path = tmp_path / f"x{suffix}"
    write(path, ["a\udcff.png"], images(1))
    assert read(path)[0] in (["a\udcff.png"], [r"a\udcff.png"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failure_leaves_nothing(suffix, tmp_path):
    def fail():
        with open_feature_file(tmp_path / f"x{suffix}") as file:
            file.add("a", images(1)[0])
            raise KeyError("on the way")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failure_leaves_the_old_file(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    write(path, ["a"], images(1))
    before = path.read_bytes()

    def fail():
        with open_feature_file(path) as file:
            file.add("b", images(1, seed=1)[0])
            raise XCiTError("on the way")

    with pytest.raises(XCiTError, match="on the way"):
        fail()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_success_replaces_the_old_file(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    write(path, ["a"], images(1))
    write(path, ["b", "c"], images(2))
    assert read(path)[0] == ["b", "c"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_is_one_line(suffix, tmp_path):
    """Limits the size of files in a separate process, which has the same effect as a full disk."""
    path = tmp_path / f"x{suffix}"
    script = (
        "import sys, numpy as np; from pathlib import Path; from xcit.data.features import open_feature_file\n"
        "from xcit.errors import XCiTError\n"
        "try:\n"
        "    with open_feature_file(Path(sys.argv[1])) as file:\n"
        "        file.add('a', {0: np.random.default_rng(0).normal(size=100_000).astype(np.float32)})\n"
        "except XCiTError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path}: can't be written: ")
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_other_suffix(tmp_path):
    with (
        pytest.raises(
            XCiTError, match=r"x\.csv: the name of a file of features must end in \.npz, \.safetensors, \.parquet"
        ),
        open_feature_file(tmp_path / "x.csv"),
    ):
        pytest.fail("there is no such format")


def test_no_such_folder(tmp_path):
    with (
        pytest.raises(XCiTError, match=r"there is no folder .*nowhere"),
        open_feature_file(tmp_path / "nowhere" / "x.npz"),
    ):
        pytest.fail("there is no such folder")


def test_path_of_a_folder(tmp_path):
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(XCiTError, match=r"x\.npz: can't be written"):
        write(tmp_path / "x.npz", ["a"], images(1))
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]
