"""Stores of an image's tokens between two blocks: memory, or two scratch files that are used alternately.

Both implement `models.stripes.Tokens`: a pass reads rows from the first to the last, and writes them a little later.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from xcit.errors import XCiTError


class MemoryTokens:
    """Tokens (H, W, D) in a tensor, whose device and dtype may differ from the model's."""

    def __init__(self, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        self._tensor, self._device, self._dtype = tensor, device, dtype

    @property
    def height(self) -> int:
        """H."""
        return self._tensor.shape[0]

    def read(self, start: int, end: int) -> Tensor:
        """Returns a view, if nothing has to be moved or converted."""
        return self._tensor[start:end].to(self._device, self._dtype)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies and converts the rows."""
        self._tensor[start : start + len(rows)] = rows

    def finish_pass(self) -> None:
        """Does nothing."""


class ScratchTokens:
    """Tokens (H, W, D) in one file; a pass writes its output to another file.

    Two threads read and write rows through a few buffers. Memory-mapping is not used, because it would count as
    resident memory.

    Attributes:
        current: the file, 0 or 1, that is read.
        checksum: sum of the bit patterns of the tokens that the current (or last) pass has written.
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
        """H."""
        return self._height

    def read(self, start: int, end: int) -> Tensor:
        """Returns rows that were read ahead, and starts to read the same number of rows after them."""
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
        """Copies the rows to a buffer, which a thread writes to the other file.

        Raises:
            XCiTError: if earlier rows could not be written.
        """
        at_once = len(self._write_buffers[0])
        for first in range(0, len(rows), at_once):  # the last stripe of a pass has a few more rows
            if len(self._writing) == len(self._write_buffers):
                self._wait(self._writing.pop(0))
            some = rows[first : first + at_once]
            buffer = self._write_buffers[self._num_written % len(self._write_buffers)][: len(some)]
            buffer.copy_(some)
            self.checksum += bit_sum(buffer)
            self._num_written += 1
            self._writing.append(self._writer.submit(self._write, start + first, buffer))

    def finish_pass(self) -> None:
        """Waits until all rows are written, and swaps the files if any were written.

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
        """Whether the tokens in the current file match the checksum; a crash of the machine may have lost some."""
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
        self._read_buffers.reverse()  # the other buffer is in use
        rows = self._read_buffers[0][: end - start]
        file, rest = self._files[self.current], as_bytes(rows)
        file.seek(self._offset(start))
        while rest:
            count = file.readinto(rest)
            if not count:
                raise XCiTError(f"{self._paths[self.current]}: a scratch file that is too short")
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
    """Returns the memory of contiguous rows on the CPU."""
    return rows.flatten().view(torch.uint8).numpy().data


def bit_sum(rows: Tensor) -> int:
    """Returns the sum of the bit patterns of all values, read as integers."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.dtype.itemsize]
    return int(rows.view(integers).sum(dtype=torch.int64))
