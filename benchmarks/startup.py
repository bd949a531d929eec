"""Measures the time of `xcit --help` and of a first prediction, and compares both with the time of `import torch`.

    python benchmarks/startup.py [ROUNDS]

Each round runs the three commands in turn, each in a new process. So a slow moment of the machine affects all three.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import xcit
from xcit.machine import processor

IMAGE = Path(xcit.__file__).parent / "zoo" / "packaged" / "images" / "bag.png"

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "xcit --help": [sys.executable, "-m", "xcit", "--help"],
    "first prediction": [sys.executable, "-m", "xcit", "predict", str(IMAGE)],
}
"""The measured commands; the first is the reference for the others."""

TARGETS = {"xcit --help": 0.25, "first prediction": 1.3}
"""Upper limits of the times, in multiples of the time of `import torch`."""


def seconds(command: list[str]) -> float:
    """Returns the wall-clock time of a process in seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=7)
    rounds = parser.parse_args().rounds
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{platform.platform()}, {processor()}, {usable} of {os.cpu_count()} cores")
    print(f"Python {platform.python_version()}, torch {version('torch')}, xcit {xcit.__version__}, {rounds} rounds")
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # this run is not measured: it fills the disk cache
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = next(iter(medians.values()))
    print(f"{'':18s} {'median':>8s} {'fastest':>8s} {'slowest':>8s} {'x torch':>8s}   target")
    for name, values in times.items():
        ratio = medians[name] / reference
        line = f"{name:18s} {medians[name]:6.2f} s {min(values):6.2f} s {max(values):6.2f} s {ratio:7.2f}x"
        if name in TARGETS:
            line += f"   at most {TARGETS[name]}x: {'met' if ratio <= TARGETS[name] else 'missed'}"
        print(line)


if __name__ == "__main__":
    main()
