"""Stores the labels of a large image while they are computed: in memory, or in a file."""

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from xcit.data.segmentation import Labels
from xcit.errors import XCiTError


class LabelStore(Protocol):
    """Stores labels, uint8 (h, w). Rows are written from the first to the last, and can be read in any order."""

    def write(self, start: int, labels: Labels) -> None:
        """Stores rows of labels, beginning with row `start`."""

    def read(self, start: int, end: int) -> Labels:
        """Returns the rows from `start` to `end - 1`."""


class MemoryLabels:
    """Stores labels in memory."""

    def __init__(self, height: int, width: int) -> None:
        self._labels = np.empty((height, width), np.uint8)

    def write(self, start: int, labels: Labels) -> None:
        """Copies rows of labels, beginning with row `start`."""
        self._labels[start : start + len(labels)] = labels

    def read(self, start: int, end: int) -> Labels:
        """Returns a view of the rows from `start` to `end - 1`."""
        return self._labels[start:end]


class FileLabels:
    """Stores labels in a file."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width

    def write(self, start: int, labels: Labels) -> None:
        """Writes rows of labels to the disk, beginning with row `start`.

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
        """Returns the rows from `start` to `end - 1` as a new array.

        Raises:
            XCiTError: if the file is too short or can't be read.
        """
        try:
            found = np.fromfile(self._path, np.uint8, (end - start) * self._width, offset=start * self._width)
        except OSError as error:
            raise XCiTError(f"{self._path}: can't be read: {error.strerror}") from None
        if len(found) != (end - start) * self._width:
            raise XCiTError(f"{self._path}: this scratch file is too short")
        return found.reshape(end - start, self._width)

    def holds(self, rows: int) -> bool:
        """Returns whether the file contains at least `rows` rows."""
        return self._path.exists() and self._path.stat().st_size >= rows * self._width
