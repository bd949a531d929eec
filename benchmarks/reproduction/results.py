"""Results on disk, a JSON file a measurement: a run that was stopped goes on, and several processes share one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduction.plan import Measurement
from xcit.writing import whole_file


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a measurement went: figures in percent of so many images, or why there are none."""

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
        """Puts it into a folder, in place of an earlier one."""
        with whole_file(_path(folder, self.key)) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def _path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def read_result(folder: Path, key: str) -> Result | None:
    """A measurement's result; none where there is none, or what is there is none."""
    try:
        content: dict[str, Any] = json.loads(_path(folder, key).read_text(encoding="utf-8"))
        return Result(**{**content, "versions": tuple(content["versions"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_done(folder: Path, measurement: Measurement, data: str, since: float) -> bool:
    """Whether a measurement was made on this data before, or has failed since this time, in seconds of the clock.

    What failed in an earlier run is to be tried again, and what failed for another process of this run is not.
    """
    found = read_result(folder, measurement.key)
    if found is None or found.data != data:
        return False
    return not found.failure or _path(folder, measurement.key).stat().st_mtime >= since


def read_results(folder: Path, measurements: Sequence[Measurement]) -> dict[str, Result]:
    """All results that there are, by the measurement's key."""
    found = (read_result(folder, measurement.key) for measurement in measurements)
    return {result.key: result for result in found if result is not None}
