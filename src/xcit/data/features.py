"""Feature files: npz, safetensors or Parquet, with an image's name beside its features."""

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
    """Takes features image by image. `shapes` holds each column's shape so far, images first."""

    shapes: dict[str, tuple[int, ...]]

    def add(self, name: str, layers: Mapping[int, Array]) -> None:
        """Adds an image: block index -> float32 features, of the same shape for every image."""

    def close(self) -> None:
        """Writes what is not yet written."""


@contextmanager
def open_feature_file(path: Path) -> Iterator[FeatureFile]:
    """A file of float32 columns `block_<index>`, one a block, and the images' names; it appears whole or not at all.

    A file of no image replaces none.

    npz: arrays, and `files`, the names. safetensors: tensors, and in the metadata `files`, a JSON list. Parquet:
    flattened rows, written as they come, with the shape of one in each column's metadata; it needs `pyarrow`.

    Raises:
        XCiTError: if the suffix is another, or the file can't be written.
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
        else:  # of no image: not what an earlier result should be lost for
            part.unlink()


class _ArraysFile:
    """Collects everything, then writes it at once."""

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
            except SafetensorError as error:  # its own name for a full disk
                raise OSError(str(error)) from None


class _ParquetFile:
    """Writes a group of rows whenever one is full, so that memory stays bounded."""

    def __init__(self, part: Path, suffix: str) -> None:
        need_packages("Parquet", "pyarrow")  # told before the work
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
        # Parquet holds UTF-8 only; bytes of a file's name that are no text are written as \udc...
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
