"""Writes features of images to a file (npz, safetensors or Parquet), together with the name of each image."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.writing import whole_file

SUFFIXES = (".npz", ".safetensors", ".parquet")

_ROWS_A_GROUP = 1024

Array = np.ndarray[Any, np.dtype[np.float32]]


class FeatureFile(Protocol):
    """A file to which features are added image by image.

    `shapes` maps the name of each column to the current shape of the column. The first dimension of a shape is the
    number of images.
    """

    shapes: dict[str, tuple[int, ...]]

    def add(self, name: str, layers: Mapping[int, Array]) -> None:
        """Adds the features of the image `name`.

        `layers` maps indices of blocks to float32 arrays. The array of a block must have the same shape for all images.
        """

    def close(self) -> None:
        """Writes the features that have not been written yet."""


@contextmanager
def open_feature_file(path: Path) -> Iterator[FeatureFile]:
    """Creates a file with the names of images and one float32 column `block_<index>` per block of the model.

    The file gets the name `path` only when it is complete. If no image is added, an existing file is not replaced. The
    suffix of `path` determines the format:

    - `.npz`: an array per column, and an array `files` with the names.
    - `.safetensors`: a tensor per column; the names are a JSON list `files` in the metadata.
    - `.parquet`: a row per image, with the name in the column `file`. The features are flattened, and the metadata of
      each column contain the shape before flattening. This format needs `pyarrow`.

    Raises:
        XCiTError: if the suffix is unknown, or the file can't be written.
    """
    kinds: dict[str, Callable[[Path, str], FeatureFile]] = {
        ".npz": _ArraysFile,
        ".safetensors": _ArraysFile,
        ".parquet": _ParquetFile,
    }
    if path.suffix not in kinds:
        raise XCiTError(f"{path}: the name of a file of features must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise XCiTError(f"{path}: there is no folder {path.parent}")
    with whole_file(path) as part:
        file = kinds[path.suffix](part, path.suffix)
        yield file
        if file.shapes or not path.exists():
            file.close()
        else:  # no image was added, so the existing file is kept
            part.unlink()


class _ArraysFile:
    """An npz or safetensors file. All features are collected in memory and written at the end."""

    def __init__(self, part: Path, suffix: str) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._part, self._suffix = part, suffix
        self._names: list[str] = []
        self._columns: dict[str, list[Array]] = {}

    def add(self, name: str, layers: Mapping[int, Array]) -> None:
        self._names.append(name)
        for index, array in layers.items():
            rows = self._columns.setdefault(f"block_{index}", [])
            rows.append(array)
            self.shapes[f"block_{index}"] = (len(rows), *array.shape)

    def close(self) -> None:
        columns = {name: np.stack(rows) for name, rows in self._columns.items()}
        if self._suffix == ".npz":
            with self._part.open("wb") as file:
                np.savez(file, allow_pickle=False, files=np.array(self._names, dtype=np.str_), **columns)
        else:
            from safetensors import SafetensorError
            from safetensors.numpy import save_file

            try:
                save_file(columns, self._part, metadata={"files": json.dumps(self._names)})
            except SafetensorError as error:  # safetensors raises its own error for a full disk
                raise OSError(str(error)) from None


class _ParquetFile:
    """A Parquet file. Rows are written in groups, so that only one group is in memory."""

    def __init__(self, part: Path, suffix: str) -> None:
        need_packages("Parquet", "pyarrow")  # a missing package is reported before any features are computed
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._part = part
        self._writer: Any = None
        self._rows: list[tuple[str, Mapping[int, Array]]] = []
        self._count = 0

    def add(self, name: str, layers: Mapping[int, Array]) -> None:
        self._rows.append((name, layers))
        self._count += 1
        for index, array in layers.items():
            self.shapes[f"block_{index}"] = (self._count, *array.shape)
        if len(self._rows) == _ROWS_A_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows or self._writer is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [pa.field("file", pa.string())]
        # Parquet stores only UTF-8. In file names, each byte that is not valid UTF-8 is written as \udcXX.
        names = [name.encode(errors="backslashreplace").decode() for name, _ in self._rows]
        columns = [pa.array(names, pa.string())]
        for column, (_, *shape) in self.shapes.items():
            index, length = int(column.removeprefix("block_")), int(np.prod(shape))
            flat = np.stack([layers[index].ravel() for _, layers in self._rows]).ravel()
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), length))
            fields.append(pa.field(column, columns[-1].type, metadata={"shape": json.dumps(shape)}))
        schema = pa.schema(fields)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._part, schema)
        self._writer.write_table(pa.table(columns, schema=schema))
        self._rows.clear()
