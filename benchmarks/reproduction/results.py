"""Stores each result in its own JSON file, so that a stopped run can continue and several processes can share a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduction.plan import Measurement
from xcit.writing import whole_file


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a measurement: figures in percent and the number of images, or the reason for a failure."""

    key: str
    data: str
    figures: dict[str, float]
    num_images: int
    num_unreadable: int
    machine: str
    versions: tuple[str, ...]
    note: str = ""
    failure: str = ""

    def write(self, folder: Path) -> None:
        """Writes the result to its file in a folder, and replaces an earlier result."""
        with whole_file(_path(folder, self.key)) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def read_result(folder: Path, key: str) -> Result | None:
    """Returns a measurement's result; None if there is no valid result."""
    try:
        content: dict[str, Any] = json.loads(_path(folder, key).read_text(encoding="utf-8"))
        return Result(**{**content, "versions": tuple(content["versions"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_done(folder: Path, measurement: Measurement, data: str, since: float) -> bool:
    """Returns whether a measurement was already made on these data, or failed in this run.

    `since` is the start of this run, from `time.time()`. A measurement that failed before `since` is made again. A
    measurement that failed after it, in another process of this run, is not.
    """
    found = read_result(folder, measurement.key)
    if found is None or found.data != data:
        return False
    return not found.failure or _path(folder, measurement.key).stat().st_mtime >= since


def read_results(folder: Path, measurements: Sequence[Measurement]) -> dict[str, Result]:
    """Returns the stored results by the measurement's key, without measurements that have no result."""
    found = (read_result(folder, measurement.key) for measurement in measurements)
    return {result.key: result for result in found if result is not None}
