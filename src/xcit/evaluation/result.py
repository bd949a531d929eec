"""What the measurements of all tasks share: how they are computed, and what can be done with their results."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How to compute; the fields are arguments of `xcit.test`."""

    num_workers: int
    device: torch.device
    dtype: torch.dtype
    started: Callable[[int], None]
    report: Callable[[int], None]


class TestResult(ABC):
    """What a model was measured to be worth: `report` has the figures as numbers, `lines` as text."""

    __test__ = False  # no test, whatever pytest thinks of its name

    report: Any

    @property
    @abstractmethod
    def problems(self) -> tuple[str, ...]:
        """A line for each thing that was not measured, and each that is not as it should be in the data."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The figures, for people."""

    @abstractmethod
    def write(self, folder: Path, *, config: str, checkpoint: str, data: str) -> list[Path]:
        """Writes report.json, which begins with these three, and what else belongs to the task, into a folder.

        Returns:
            The files that were written, report.json first.
        """


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Writes an object as a file, and makes the folder for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Writes a table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows(rows)
    return path


def write_confusion(path: Path, names: Sequence[str], confusion: torch.Tensor) -> Path:
    """Writes counts (K, K) as CSV, a row a true class."""
    rows = ([name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True))
    return write_table(path, ["true \\ predicted", *names], rows)
