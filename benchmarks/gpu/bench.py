"""Code for all parts of the benchmark: the report, the device's clock, and the peak speeds of the machine."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xcit.measure.clock import matrix_peak

SAMPLE_SECONDS = 0.004
"""The clock is read after at least about this many seconds: shorter work is repeated."""

Run = Callable[[], object]


class Report:
    """Prints lines, and writes each line and each record immediately to files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.records: dict[str, list[dict[str, Any]]] = {}
        for name in ("table.txt", "profile.txt"):
            (folder / name).write_text("")

    def say(self, line: str = "") -> None:
        """Prints a line."""
        print(line, flush=True)
        with (self.folder / "table.txt").open("a") as file:
            file.write(line + "\n")

    def record(self, part: str, **values: Any) -> None:
        """Adds a record to the records of a part."""
        self.records.setdefault(part, []).append(values)
        (self.folder / "results.json").write_text(json.dumps(self.records, indent=1))

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Reports an error in the `with` block, if there is one; the program continues after the block."""
        try:
            yield
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.say(f"    FAILED {what}: {type(error).__name__}: {lines[0][:300]}")
            self.record("failures", what=what, error=traceback.format_exc()[-4000:])
        finally:
            gc.collect()
            torch.cuda.empty_cache()


class Clock:
    """Measures the device's time, in seconds."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.cuda, self.rounds = device.type == "cuda", rounds

    def seconds(self, run: Run, repeats: int) -> float:
        """Returns the seconds of one run: the mean over `repeats` runs."""
        if not self.cuda:
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - started) / repeats
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats

    def take_turns(self, runs: Mapping[str, Run]) -> dict[str, list[float]]:
        """Returns the seconds of each run in each round; the runs take turns. All runs must have been called before."""
        repeats = dict.fromkeys(runs, 1)
        if self.cuda:
            repeats = {name: max(1, min(100, int(SAMPLE_SECONDS / self.seconds(run, 1)))) for name, run in runs.items()}
        names = [*runs]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(self.rounds):
            for name in names:
                taken[name].append(self.seconds(runs[name], repeats[name]))
            names = names[1:] + names[:1]
        return taken


class Bench:
    """A device, its clock, its speeds, and the report."""

    dtype = torch.bfloat16

    def __init__(self, device: torch.device, tiny: bool, report: Report) -> None:
        self.device, self.tiny, self.report = device, tiny, report
        self.clock = Clock(device, rounds=1 if tiny else 15)
        self.matrix_peak = matrix_peak(device, self.dtype, (256,) if tiny else (8192,))
        source = torch.empty(2**20 if tiny else 2**30, dtype=torch.uint8, device=device).random_()
        target = torch.empty_like(source)
        target.copy_(source)
        self.copy_peak = 2 * source.nbytes / min(self.clock.take_turns({"": lambda: target.copy_(source)})[""])

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiles the function for one shape."""
        # A tiny run has no time for compiling, and compiled graphs can't contain the interpreter.
        return torch.compile(function, dynamic=False, backend="eager" if self.tiny else "inductor")

    def out_of_time(self, deadline: float) -> bool:
        """Returns whether the deadline has passed, and prints a line if it has."""
        if time.monotonic() <= deadline:
            return False
        self.report.say("    the rest is left out, because the time is over")
        return True
