"""The reader of whatever a person gives, by rows."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from xcit.images.array_rows import ArrayRows, NpyRows, file_identity
from xcit.images.read import ImageSource, read_image
from xcit.images.rows import ImageRows, RowsInfo
from xcit.images.tiff_rows import TiffRows

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf", ".tf8"})


@contextmanager
def open_rows(source: ImageSource | ImageRows, *, name: str = "the image", level: int = 0) -> Iterator[ImageRows]:
    """Opens an image to read it by rows, and closes it.

    Args:
        source: a path, a PIL image, an array (H, W) or (H, W, C), a tensor (H, W) or (C, H, W), or one that has rows.
        name: what errors call an image that is no file.
        level: of a pyramid, 0 the largest.

    Files of `TIFF_SUFFIXES` and .npy files are read by rows and in their own type; all others are decoded whole, as
    `read_image` shows them, with Pillow's limit on their size.

    Raises:
        XCiTError: "<path>: <reason>" if it can't be read.
    """
    if isinstance(source, np.ndarray | Tensor):
        yield ArrayRows(source, RowsInfo(name=name))
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() in TIFF_SUFFIXES:
            with closing(TiffRows(path, level)) as rows:
                yield rows
        elif path.suffix.lower() == ".npy":
            with closing(NpyRows(path)) as array:
                yield array
        else:
            pixels = np.asarray(read_image(path))
            yield ArrayRows(pixels, RowsInfo(name=str(path), identity=file_identity(path), buffer_bytes=pixels.nbytes))
    elif isinstance(source, Image.Image):
        yield ArrayRows(np.asarray(read_image(source)), RowsInfo(name=name))
    else:
        yield source
