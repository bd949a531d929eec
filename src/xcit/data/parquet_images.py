"""Reads images from a Parquet file on disk or at a URL. Each row contains the bytes of an image file."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from xcit.data.remote import is_url, open_seekable
from xcit.data.samples import StreamSample, unreadable_sample
from xcit.errors import XCiTError
from xcit.extras import need_packages
from xcit.regular import regular

_COLUMNS = ("image", "img")
"""Column names that are recognised as images. If the column has another name, the user must give its name."""

_ROWS_AT_ONCE = 64


def is_parquet(place: str) -> bool:
    """Returns whether a path or URL has the suffix `.parquet`. `?image=COLUMN` may follow the suffix."""
    return re.search(r"\.parquet(\?image=.+)?$", place) is not None


def count_rows(place: str) -> int:
    """Returns the number of rows of a Parquet file; arguments and errors are as in `read_parquet`."""
    with _opened(place) as (file, _):
        return int(file.metadata.num_rows)


def read_parquet(place: str) -> Iterator[StreamSample]:
    """Yields the images of a Parquet file, row by row.

    Args:
        place: a path or URL. It may end in `?image=COLUMN`, the name of the column of images; otherwise this column is
            called `image` or `img`. The column contains the bytes of image files, or records with a field `bytes`, as
            on the Hugging Face Hub.

    Raises:
        XCiTError: if the file can't be read, or the column of images is missing or ambiguous.
    """
    number = 0
    with _opened(place) as (file, column):
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[column]):
            for value in batch.column(0).to_pylist():
                name = f"{place.partition('?image=')[0]} row {number}"
                data = value.get("bytes") if isinstance(value, dict) else value
                number += 1
                if data is None:
                    yield unreadable_sample(name, "there is no image in this row")
                else:
                    yield StreamSample(name, -1, partial(bytes, data))


@contextmanager
def _opened(place: str) -> Iterator[tuple[Any, str]]:
    """Yields the open Parquet file, and the name of its column of images."""
    need_packages("Parquet", "pyarrow")
    from pyarrow import ArrowException, parquet

    path, _, wanted = place.partition("?image=")
    try:
        with ExitStack() as stack:
            source = stack.enter_context(open_seekable(path)) if is_url(path) else regular(path)
            file = stack.enter_context(parquet.ParquetFile(source))
            yield file, _column(path, file.schema_arrow, wanted)
    except FileNotFoundError:
        raise XCiTError(f"{path}: no such file") from None
    except (OSError, ArrowException) as error:
        raise XCiTError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _column(path: str, schema: Any, wanted: str) -> str:
    from pyarrow import types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [field.name for field in schema if holds_images(field.type)]
    chosen = [name for name in ([wanted] if wanted else _COLUMNS) if name in found]
    if len(chosen) != 1:
        what = f"the column {wanted} has no images" if wanted else "it is not clear which column has the images"
        raise XCiTError(
            f"{path}: {what}; the columns are {', '.join(schema.names)}; name the column as in {path}?image=COLUMN"
        )
    return chosen[0]
