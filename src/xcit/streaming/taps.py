"""Defines taps. A tap stores the tokens after one block of the backbone, in memory or in a scratch file.

First, the backbone writes the output rows of the block to the tap (`outputs.TokenMap`). Then a dense head (a detector
or a segmenter) reads rows of the tap in any order (`models.map_rows.MapRows`).
"""

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.streaming.outputs import TokenMap
from xcit.streaming.stores import as_bytes, bit_sum

_ROWS_SUMMED = 64
"""Number of rows that are read at once to compute a checksum."""


class Tap(TokenMap, Protocol):
    """The tokens (height, width, channels) after a block. The backbone writes all rows before the head reads rows."""

    height: int
    width: int
    channels: int

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows start:end, (end - start, width, channels), on the model's device and in its dtype."""


class MemoryTap:
    """A tap in host memory.

    Args:
        grid: height and width of the token grid.
        dim: width of a token.
        stored: dtype in which the tokens are stored.
        device: device of the tensors that `read` returns.
        dtype: dtype of the tensors that `read` returns.
    """

    def __init__(
        self, grid: tuple[int, int], dim: int, *, stored: torch.dtype, device: torch.device, dtype: torch.dtype
    ) -> None:
        (self.height, self.width), self.channels = grid, dim
        self._stored, self._device, self._dtype = stored, device, dtype
        self._tensor: Tensor | None = None

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Allocates the memory."""
        self._tensor = torch.empty(*grid, dim, dtype=self._stored)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies the rows to the memory, and converts their dtype."""
        assert self._tensor is not None
        self._tensor[start : start + len(rows)] = rows

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows start:end on the model's device and in its dtype; a view if nothing has to be converted."""
        assert self._tensor is not None
        return self._tensor[start:end].to(self._device, self._dtype)

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the size of all tokens in bytes."""
        return grid[0] * grid[1] * dim * self._stored.itemsize

    def can_go_on(self) -> bool:
        """Returns false, because the tokens are lost if the process is killed."""
        return False

    def discard(self) -> None:
        """Releases the memory."""
        self._tensor = None


class ScratchTap:
    """A tap in a scratch file. The file is not memory-mapped, because mapped pages would count as resident memory.

    Args:
        path: path of the file. An existing file is kept until `open` is called.
        grid: height and width of the token grid.
        dim: width of a token.
        stored: dtype in which the tokens are stored.
        device: device of the tensors that `read` returns.
        dtype: dtype of the tensors that `read` returns.

    Raises:
        XCiTError: if the file can't be created.
    """

    def __init__(
        self,
        path: Path,
        grid: tuple[int, int],
        dim: int,
        *,
        stored: torch.dtype,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        (self.height, self.width), self.channels = grid, dim
        self._path, self._stored, self._device, self._dtype = path, stored, device, dtype
        self._row_bytes = self.width * dim * stored.itemsize
        try:
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise XCiTError(f"{path}: can't be made: {error.strerror}") from None
        self.bytes_read = self.bytes_written = 0

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Empties the file, unless a killed run is resumed."""
        if not goes_on:
            self.discard()

    def write(self, start: int, rows: Tensor) -> None:
        """Writes the rows to the file.

        Raises:
            XCiTError: if the rows can't be written.
        """
        rest = as_bytes(rows.to(self._stored).contiguous())
        try:
            self._file.seek(start * self._row_bytes)
            while rest:
                count = self._file.write(rest)
                rest, self.bytes_written = rest[count:], self.bytes_written + count
        except OSError as error:
            raise XCiTError(f"{self._path}: can't be written: {error.strerror}") from None

    def read(self, start: int, end: int) -> Tensor:
        """Reads rows start:end from the file into a new tensor, on the model's device and in its dtype.

        Raises:
            XCiTError: if the file is too short.
        """
        return self._read(start, end).to(self._device, self._dtype)

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns 0, because no tokens are kept in memory."""
        return 0

    def can_go_on(self) -> bool:
        """Returns whether the file has the size of all rows."""
        return self._path.stat().st_size == self.height * self._row_bytes

    def discard(self) -> None:
        """Empties the file."""
        self._file.truncate(0)

    def checksum(self) -> int:
        """Flushes the file to the disk, and returns a checksum: the sum of the bit patterns of all tokens.

        Raises:
            XCiTError: if the file is too short.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise XCiTError(f"{self._path}: can't be written: {error.strerror}") from None
        starts = range(0, self.height, _ROWS_SUMMED)
        return sum(bit_sum(self._read(start, min(start + _ROWS_SUMMED, self.height))) for start in starts)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, start: int, end: int) -> Tensor:
        rows = torch.empty(end - start, self.width, self.channels, dtype=self._stored)
        rest = as_bytes(rows)
        self._file.seek(start * self._row_bytes)
        while rest:
            count = self._file.readinto(rest)
            if not count:
                raise XCiTError(f"{self._path}: the scratch file is too short")
            rest, self.bytes_read = rest[count:], self.bytes_read + count
        return rows
