"""Stores for an image's tokens between two blocks: in memory, or in two scratch files that are used alternately.

Both stores implement `models.stripes.Tokens`. A pass reads the rows from the first to the last, and writes an output
row only after it has read the input row with the same index.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from xcit.errors import XCiTError


class MemoryTokens:
    """Tokens (H, W, D) in a tensor. The device and dtype of the tensor may differ from those of the model."""

    def __init__(self, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self._tensor, self._device, self._dtype = tensor, device, dtype

    @property
    def height(self) -> int:
        """Number of rows of tokens, H."""
        return self._tensor.shape[0]

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows start:end on the model's device and in its dtype; a view if nothing has to be converted."""
        return self._tensor[start:end].to(self._device, self._dtype)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies rows (k, W, D) to rows start:start + k of the tensor, and converts them."""
        self._tensor[start : start + len(rows)] = rows

    def finish_pass(self) -> None:
        """Does nothing. Only `ScratchTokens` needs this method."""


class ScratchTokens:
    """Tokens (H, W, D) in two scratch files. A pass reads one file and writes its output to the other file.

    One thread reads rows and another thread writes rows, with two buffers each. The files are not memory-mapped,
    because mapped pages would count as resident memory.

    Attributes:
        current: index (0 or 1) of the file that is read.
        checksum: sum of the bit patterns of all tokens that were written since `start_pass` was called.
        bytes_read: number of bytes read so far.
        bytes_written: number of bytes written so far.
    """

    def __init__(
        self,
        paths: tuple[Path, Path],
        shape: tuple[int, int, int],
        rows_at_once: int,
        *,
        stored: torch.dtype,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.current, self.checksum = 0, 0
        self.bytes_read = self.bytes_written = 0
        self._device, self._dtype, self._stored = device, dtype, stored
        self._height, self._width, self._dim = shape
        self._paths = paths
        self._files = [path.open("r+b" if path.exists() else "w+b", buffering=0) for path in paths]
        size = (rows_at_once, self._width, self._dim)
        self._read_buffers = [torch.empty(size, dtype=stored) for _ in range(2)]
        self._write_buffers = [torch.empty(size, dtype=stored) for _ in range(2)]
        self._reader, self._writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._coming: tuple[int, int, Future[Tensor]] | None = None
        self._writing: list[Future[None]] = []
        self._num_written = 0

    @property
    def height(self) -> int:
        """Number of rows of tokens, H."""
        return self._height

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows start:end. A thread then reads the same number of following rows in advance."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[:2] == (start, end):
            rows = coming[2].result()
        else:
            if coming is not None:
                coming[2].result()
            rows = self._reader.submit(self._read, start, end).result()
        following = min(end + (end - start), self._height)
        if end < following:
            self._coming = (end, following, self._reader.submit(self._read, end, following))
        return rows.to(self._device, self._dtype)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies the rows to a buffer. A thread writes the buffer to the other file.

        Raises:
            XCiTError: if earlier rows could not be written.
        """
        at_once = len(self._write_buffers[0])
        for first in range(0, len(rows), at_once):  # the last stripe may be larger than a buffer
            if len(self._writing) == len(self._write_buffers):
                self._wait(self._writing.pop(0))
            some = rows[first : first + at_once]
            buffer = self._write_buffers[self._num_written % len(self._write_buffers)][: len(some)]
            buffer.copy_(some)
            self.checksum += bit_sum(buffer)
            self._num_written += 1
            self._writing.append(self._writer.submit(self._write, start + first, buffer))

    def finish_pass(self) -> None:
        """Waits until all rows are written. If rows were written, the next pass reads the file that contains them.

        Raises:
            XCiTError: if the rows could not be written.
        """
        was_written = bool(self._writing)
        while self._writing:
            self._wait(self._writing.pop(0))
        if was_written:
            self.current = 1 - self.current

    def start_pass(self) -> None:
        """Resets the checksum."""
        self.checksum = 0

    def holds(self, checksum: int) -> bool:
        """Returns whether the current file matches a checksum. After a crash of the machine, tokens may be missing."""
        found = 0
        for start in range(0, self._height, len(self._read_buffers[0])):
            rows = min(len(self._read_buffers[0]), self._height - start)
            try:
                found += bit_sum(self._read(start, start + rows))
            except XCiTError:
                return False
        return found == checksum

    def close(self) -> None:
        """Stops the threads and closes the files."""
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        for file in self._files:
            file.close()

    def _read(self, start: int, end: int) -> Tensor:
        self._read_buffers.reverse()  # the caller may still use the other buffer
        rows = self._read_buffers[0][: end - start]
        file, rest = self._files[self.current], as_bytes(rows)
        file.seek(self._offset(start))
        while rest:
            count = file.readinto(rest)
            if not count:
                raise XCiTError(f"{self._paths[self.current]}: the scratch file is too short")
            rest, self.bytes_read = rest[count:], self.bytes_read + count
        return rows

    def _write(self, start: int, rows: Tensor) -> None:
        file, rest = self._files[1 - self.current], as_bytes(rows)
        file.seek(self._offset(start))
        while rest:
            count = file.write(rest)
            rest, self.bytes_written = rest[count:], self.bytes_written + count

    def _wait(self, writing: Future[None]) -> None:
        try:
            writing.result()
        except OSError as error:
            raise XCiTError(f"{self._paths[1 - self.current]}: can't be written: {error.strerror}") from None

    def _offset(self, row: int) -> int:
        return row * self._width * self._dim * self._stored.itemsize


def as_bytes(rows: Tensor) -> memoryview:
    """Returns a view of the bytes of a contiguous tensor on the CPU."""
    return rows.flatten().view(torch.uint8).numpy().data


def bit_sum(rows: Tensor) -> int:
    """Returns a checksum of a tensor: its values are interpreted as integers of the same size and added up."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.dtype.itemsize]
    return int(rows.view(integers).sum(dtype=torch.int64))
