"""Stores for the maps of a detector's neck, from which boxes read parts: in memory, or each map in a scratch file."""

import os

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.streaming.stores import as_bytes, bit_sum
from xcit.streaming.taps import MemoryTap, ScratchTap


class MemoryLevel(MemoryTap):
    """A map (height, width, C) in memory."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns a view (see `models.detection.regions.Level`)."""
        return self.read(top, bottom)[:, left:right]

    def close(self) -> None:
        """Releases the memory."""
        self.discard()


class ScratchLevel(ScratchTap):
    """A map (height, width, C) in a file."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns a new tensor. Only these columns are read from the file (see `models.detection.regions.Level`).

        Raises:
            XCiTError: if the file is too short.
        """
        found = torch.empty(bottom - top, right - left, self.channels, dtype=self._stored)
        descriptor, a_pixel = self._file.fileno(), self.channels * self._stored.itemsize
        for row, target in zip(range(top, bottom), found, strict=True):
            place, rest = row * self._row_bytes + left * a_pixel, as_bytes(target)
            while rest:
                count = os.preadv(descriptor, [rest], place)
                if not count:
                    raise XCiTError(f"{self._path}: a scratch file that is too short")
                place, rest, self.bytes_read = place + count, rest[count:], self.bytes_read + count
        return found.to(self._device, self._dtype)

    def sum_of(self, num_rows: int) -> int:
        """Returns the sum of the bit patterns of the first `num_rows` rows.

        Raises:
            XCiTError: if the file is too short.
        """
        return sum(bit_sum(self._read(row, row + 1)) for row in range(num_rows))
