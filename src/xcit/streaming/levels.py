"""Stores for the feature maps of a detector's neck, in memory or in scratch files. A level is one of these maps.

The box and mask heads read small parts of the levels.
"""

import os

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.streaming.stores import as_bytes, bit_sum
from xcit.streaming.taps import MemoryTap, ScratchTap


class MemoryLevel(MemoryTap):
    """A feature map (height, width, C) in memory."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Returns rows top:bottom of columns left:right, (bottom - top, right - left, C).

        The result is a view, unless the values have to be moved to the model's device or converted to its dtype.
        """
        return self.read(top, bottom)[:, left:right]

    def close(self) -> None:
        """Releases the memory."""
        self.discard()


class ScratchLevel(ScratchTap):
    """A feature map (height, width, C) in a scratch file."""

    def window(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Reads rows top:bottom of columns left:right into a new tensor (bottom - top, right - left, C).

        Other columns are not read from the file.

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
                    raise XCiTError(f"{self._path}: the scratch file is too short")
                place, rest, self.bytes_read = place + count, rest[count:], self.bytes_read + count
        return found.to(self._device, self._dtype)

    def sum_of(self, num_rows: int) -> int:
        """Returns a checksum of the first `num_rows` rows: the sum of the bit patterns of their values.

        Raises:
            XCiTError: if the file is too short.
        """
        return sum(bit_sum(self._read(row, row + 1)) for row in range(num_rows))
