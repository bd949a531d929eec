"""The log of a run: a line of JSON for every `log_every`-th step and for every epoch.

The numbers of each line are also sent to the trackers in the config (TensorBoard, Weights & Biases).
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xcit.draw.curves import draw_curves
from xcit.errors import XCiTError
from xcit.extras import install_hint
from xcit.training.engine.config import RunConfig
from xcit.writing import whole_file

LOG = "log.jsonl"
"""Name of the log file in a run's folder."""

Line = Mapping[str, Any]


def check_trackers(run: RunConfig) -> None:
    """Checks that the trackers' packages are installed.

    Raises:
        XCiTError: if one of the packages is not installed.
    """
    for tracker in run.trackers:
        if find_spec(tracker) is None:
            raise XCiTError(f"run.trackers: {tracker} is not installed: pip install {tracker}")


class RunLog:
    """The log of a run. Only the main process writes it."""

    def __init__(self, directory: Path, run: RunConfig) -> None:
        self.path = directory / LOG
        self._trackers = [_tracker(name, directory) for name in run.trackers]

    def rewind(self, *, epochs: int, steps: int) -> None:
        """Removes the lines that were written after the checkpoint from which the run resumes.

        Args:
            epochs: number of finished epochs at the checkpoint.
            steps: number of finished steps of the run at the checkpoint.
        """
        if not self.path.exists():
            return
        limits = {"epoch": epochs, "step": steps}
        kept = [line for line in read_log(self.path) if line[line["kind"]] <= limits[line["kind"]]]
        with whole_file(self.path) as part:
            part.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")

    def write(self, line: Line) -> None:
        """Appends a line to the log file, and sends its numbers to the trackers.

        Raises:
            XCiTError: if the line can't be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise XCiTError(f"{self.path}: could not be written: {error}") from error
        numbers = {f"{line['kind']}/{name}": value for name, value in line.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.log(numbers, step=line["step"])

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            tracker.finish()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log. A line that a crash cut off, and lines that another program wrote, are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("kind") in ("step", "epoch") and {"step", "epoch"} <= line.keys():
            lines.append(line)
    return lines


def draw_run(directory: Path, title: str, announce: Callable[[str], None]) -> None:
    """Draws the curves of a run's log to `curves.png` in the run's folder, if the log exists.

    If the curves can't be drawn, the run prints only a warning, because an error would hide how the run ended.
    """
    try:
        if (directory / LOG).exists():
            draw_curves(read_log(directory / LOG), directory / "curves.png", title)
    except ModuleNotFoundError as error:
        announce(f"warning: the curves could not be drawn: {error} ({install_hint('matplotlib')})")
    except (OSError, XCiTError) as error:
        announce(f"warning: the curves could not be drawn: {error}")


class _TensorBoard:
    """Writes scalars for TensorBoard."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


def _tracker(name: str, directory: Path) -> Any:
    if name == "tensorboard":
        return _TensorBoard(directory / "tensorboard")
    import wandb

    # In wandb, a resumed run is a new run in the same group as the first run.
    return wandb.init(project="xcit", dir=str(directory), name=directory.name, group=directory.name)
