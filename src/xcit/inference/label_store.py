"""Stores for the labels of a large image while they are computed: in memory, or in a file in the run's folder."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from xcit.data.segmentation import Labels
from xcit.errors import XCiTError


class LabelStore(Protocol):
    """Labels uint8 (h, w), which are written from the first row to the last and read in any order."""

    def write(self, start: int, labels: Labels) -> None:
        """Takes rows, the first of which is row `start`. When it returns, they are stored."""

    def read(self, start: int, end: int) -> Labels:
        """Returns rows start..end."""


class MemoryLabels:
    """Labels in memory."""

    def __init__(self, height: int, width: int) -> None:
        self._labels = np.empty((height, width), np.uint8)

    def write(self, start: int, labels: Labels) -> None:
        """Copies the rows."""
        self._labels[start : start + len(labels)] = labels

    def read(self, start: int, end: int) -> Labels:
        """Returns a view of rows start..end."""
        return self._labels[start:end]


class FileLabels:
    """Labels in a file."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width

    def write(self, start: int, labels: Labels) -> None:
        """Writes the rows to the disk.

        Raises:
            XCiTError: if the rows can't be written.
        """
        try:
            with self._path.open("r+b" if self._path.exists() else "w+b") as file:
                file.seek(start * self._width)
                file.write(np.ascontiguousarray(labels).data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise XCiTError(f"{self._path}: can't be written: {error.strerror}") from None

    def read(self, start: int, end: int) -> Labels:
        """Returns new rows.

        Raises:
            XCiTError: if the file is too short or can't be read.
        """
        try:
            found = np.fromfile(self._path, np.uint8, (end - start) * self._width, offset=start * self._width)
        except OSError as error:
            raise XCiTError(f"{self._path}: can't be read: {error.strerror}") from None
        if len(found) != (end - start) * self._width:
            raise XCiTError(f"{self._path}: a scratch file that is too short")
        return found.reshape(end - start, self._width)

    def holds(self, rows: int) -> bool:
        """Whether the file has at least this number of rows."""
        return self._path.exists() and self._path.stat().st_size >= rows * self._width
