"""Files of features (npz, safetensors or Parquet), which also contain the name of each image."""

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

    `shapes` maps the name of each column to its current shape, whose first dimension is the number of images.
    """

    shapes: dict[str, tuple[int, ...]]

    def add(self, name: str, layers: Mapping[int, Array]) -> None:
        """Adds an image; `layers` maps block indices to float32 features of the same shapes for every image."""

    def close(self) -> None:
        """Writes the features that are not written yet."""


@contextmanager
def open_feature_file(path: Path) -> Iterator[FeatureFile]:
    """Creates a file with a float32 column `block_<index>` per block, and the images' names; it is written as a whole.

    If no image is added, an existing file is not replaced.

    npz: arrays, and the names as `files`. safetensors: tensors, and the names as a JSON list `files` in the metadata.
    Parquet: rows of flattened features, written in groups, with the shape of one row in each column's metadata;
    this needs `pyarrow`.

    Raises:
        XCiTError: if the suffix is unknown, or the file can't be written.
    """
    kinds: dict[str, Callable[[Path, str], FeatureFile]] = {
        ".npz": _ArraysFile,
        ".safetensors": _ArraysFile,
        ".parquet": _ParquetFile,
    }
    if path.suffix not in kinds:
        raise XCiTError(f"{path}: features go to a file that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise XCiTError(f"{path}: there is no folder {path.parent}")
    with whole_file(path) as part:
        file = kinds[path.suffix](part, path.suffix)
        yield file
        if file.shapes or not path.exists():
            file.close()
        else:  # no image was added: keep an earlier result
            part.unlink()


class _ArraysFile:
    """Collects all features in memory, and writes them at the end."""

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
    """Writes rows in groups, so that memory is bounded."""

    def __init__(self, part: Path, suffix: str) -> None:
        need_packages("Parquet", "pyarrow")  # so that the error comes before the work
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
        # Parquet stores only UTF-8. Bytes of a file name that are not valid text are written as \udc...
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
