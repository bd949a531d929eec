"""Contains the settings and results of the measurements of all tasks, and writes tables to files."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xcit.inference.full_size import FullSize
from xcit.writing import make_folder, whole_file


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Settings of a measurement; the fields have the meaning of the arguments of `xcit.test`."""

    num_workers: int
    device: torch.device
    dtype: torch.dtype
    started: Callable[[int], None]
    report: Callable[[int], None]
    announce: Callable[[str], None] = lambda _: None
    full_size: FullSize | None = None


class TestResult(ABC):
    """The result of measuring a model.

    Attributes:
        report: the figures, as numbers.
        model: a description of the model and its classes.
    """

    __test__ = False  # pytest must not collect it as a test

    report: Any
    model: str

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each image that could not be read.

        For a detector, the result also has one line for each kind of problem in the data.
        """
        unreadable: tuple[str, ...] = self.report.unreadable
        return unreadable

    @abstractmethod
    def lines(self) -> list[str]:
        """Returns the figures as lines of text."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Returns the content of report.json that is specific to the task, as JSON values."""

    def write_tables(self, folder: Path) -> list[Path]:
        """Writes tables and pictures to a folder, and returns the paths of the files."""
        return []

    def write(self, folder: Path, *, config: str, checkpoint: str, data: str) -> list[Path]:
        """Writes report.json and the tables to a folder, and creates the folder if needed.

        Args:
            folder: the folder.
            config: the recipe or run config, for report.json.
            checkpoint: the checkpoint, for report.json.
            data: the data, for report.json.

        Returns:
            Paths of the written files, report.json first.
        """
        make_folder(folder)
        path = folder / "report.json"
        content = {"config": config, "checkpoint": checkpoint, "data": data, "num_images": self.report.num_images}
        content |= self.content() | {"unreadable": list(self.report.unreadable)}
        with whole_file(path) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return [path, *self.write_tables(folder)]


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a table as CSV, with `head` as its first line, and returns the path."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)
    return path


def write_confusion(path: Path, names: Sequence[str], confusion: torch.Tensor) -> Path:
    """Writes a confusion matrix (K, K) of counts as CSV, one row per true class, and returns the path."""
    rows = ([name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True))
    return write_table(path, ["true \\ predicted", *names], rows)
