"""Reads an image a few rows at a time, from an array or a tensor in memory or from a .npy file."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.images.rows import Pixels, RowsInfo


class ArrayRows:
    """A row reader for an array (H, W) or (H, W, C), or for a tensor (H, W) or (C, H, W).

    Raises:
        XCiTError: if the shape or the type of the pixels is not supported (see `check_pixel_type`).
    """

    def __init__(self, array: np.ndarray | Tensor, info: RowsInfo | None = None, *, ranged: bool = False) -> None:
        self.info = info or RowsInfo()
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            if array.dtype is torch.bfloat16:  # NumPy has no bfloat16
                array = array.float()
            array = (array.permute(1, 2, 0) if array.ndim == 3 else array).numpy()
        if array.ndim not in (2, 3) or 0 in array.shape:
            raise XCiTError(f"{self.info.name}: shape {array.shape}: an image must have shape (H, W) or (H, W, C)")
        check_pixel_type(array.dtype, self.info.name, ranged=ranged)
        self._array = array[:, :, None] if array.ndim == 2 else array
        self.height, self.width, self.channels = self._array.shape

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end as a view of the array."""
        return self._array[start:end]


class NpyRows:
    """A row reader for a .npy file that contains an array (H, W) or (H, W, C).

    The file is not memory-mapped, because mapped pages would count as resident memory.

    Raises:
        XCiTError: if the file can't be read, or its array is not an image.
    """

    def __init__(self, path: Path, *, ranged: bool = False) -> None:
        self.info, self._ranged = RowsInfo(name=str(path), identity=file_identity(path)), ranged
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise XCiTError(f"{path}: cannot be opened ({error.strerror})") from error
        try:
            shape, self._dtype = self._header()
        except XCiTError:
            self.close()
            raise
        self.height, self.width, self.channels = (*shape, 1) if len(shape) == 2 else shape
        self._start = self._file.tell()

    def _header(self) -> tuple[tuple[int, ...], np.dtype]:
        name = self.info.name
        try:
            version = np.lib.format.read_magic(self._file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(self._file)
        except ValueError as error:
            raise XCiTError(f"{name}: not a .npy file ({error})") from error
        if len(shape) not in (2, 3) or 0 in shape or is_fortran:
            order = " in Fortran order" if is_fortran else ""
            raise XCiTError(f"{name}: shape {shape}{order}: an image must have shape (H, W) or (H, W, C), in C order")
        check_pixel_type(dtype, name, ranged=self._ranged)
        return shape, dtype

    def read(self, start: int, end: int) -> Pixels:
        """Returns rows start:end in a new array."""
        a_row = self.width * self.channels
        pixels = np.empty((end - start) * a_row, self._dtype)
        self._file.seek(self._start + start * a_row * self._dtype.itemsize)
        num_read = self._file.readinto(pixels.data.cast("B"))
        if num_read < pixels.nbytes:
            row = start + num_read // (a_row * self._dtype.itemsize)
            raise XCiTError(f"{self.info.name}: truncated: the file ends in row {row} of {self.height}")
        return pixels.reshape(end - start, self.width, self.channels)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def check_pixel_type(dtype: np.dtype, name: str, *, ranged: bool = False) -> None:
    """Checks that the type of the pixels is supported: uint8, uint16, uint32, bool or floating-point.

    Signed integers of up to 32 bits are supported only with a given range of values, because their type does not say
    which value is white.

    Args:
        dtype: type of the pixels.
        name: name of the image in error messages.
        ranged: whether a range of values is given.

    Raises:
        XCiTError: "<name>: <reason>" if the type is not supported.
    """
    if ranged and dtype.kind == "i" and dtype.itemsize <= 4:
        return
    if dtype.kind == "i":
        raise XCiTError(f"{name}: pixels of type {dtype} have no standard range: give a range by --range LOW,HIGH")
    if dtype.kind not in "fb" and not (dtype.kind == "u" and dtype.itemsize <= 4):
        raise XCiTError(
            f"{name}: pixels of type {dtype}; the supported types are uint8, uint16, uint32, bool and floats"
        )


def file_identity(path: Path) -> str:
    """Returns a text that changes when a file changes. It consists of the file's path, size and modification time.

    Raises:
        XCiTError: if the file does not exist or can't be accessed.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise XCiTError(f"{path}: {'no such file' if error.errno == 2 else error.strerror}") from error
    return f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"
