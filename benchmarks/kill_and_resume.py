"""Kills a training run at random moments, resumes it, and compares the result with a run without kills, bit for bit.

    python benchmarks/kill_and_resume.py [--task dino] [--kills 10] [--processes 1] [--seed 0] [--keep FOLDER]

A run has a few hundred steps, with augmentation, stochastic depth and two processes that read data. Classification also
has Mixup, CutMix and averaged weights; DINO also has a teacher and a centre. `xcit train` makes the run two times:
first without kills, then with repeated kills of all its processes (SIGKILL). With --processes 2, torchrun starts it.
The run is divided into as many equal parts as there are kills. Each kill comes at a random moment of its part; every
second kill waits for the next save and interrupts the save. The exit status is 1 if anything differs.
"""

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from squares import TASKS, draw_squares, num_training_images, squares_config

import xcit
from xcit.config import save_yaml
from xcit.training.engine.checkpoint import LAST, load_checkpoint
from xcit.training.engine.log import LOG, read_log
from xcit.weights.files import read_checkpoint

NUM_IMAGES_A_CLASS, BATCH_SIZE, SAVE_EVERY = 25, 8, 3

TIMES = ("seconds", "images_per_second", "data_wait")
"""Entries of a log line that depend on the clock."""

LIMIT = 600.0
"""Longest time in seconds to wait for the next step or for the end of a run; generous, for busy machines."""


@contextmanager
def started(config: Path, run: Path, num_processes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Starts or resumes a run; kills all its processes at the end of the `with` block."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes), "-m"]
    command = [sys.executable, "-m", *(launcher if num_processes > 1 else []), "xcit", "train", str(config)]
    command += ["--out", str(run), "--resume", "auto", "--device", "cpu"]
    with run.with_suffix(".txt").open("ab") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all its descendants by SIGKILL, also those in other sessions."""
    if process.poll() is not None:
        return
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in processes:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    _, alive = psutil.wait_procs(processes, timeout=LIMIT)
    if alive:
        raise SystemExit(f"processes outlived SIGKILL: {alive}")


def finish(config: Path, run: Path, num_processes: int) -> None:
    """Starts or resumes a run, and waits for its end."""
    with started(config, run, num_processes) as process:
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = -1
        if status:
            raise SystemExit(f"the run failed, or did not end in time:\n{run.with_suffix('.txt').read_text()}")


def step_of(run: Path) -> int:
    """Returns the number of the last step in a run's log; 0 if there is none."""
    return max((line["step"] for line in read_log(run / LOG)), default=0) if (run / LOG).exists() else 0


def wait_until(condition: Any, process: subprocess.Popen[bytes], run: Path) -> None:
    """Waits until a condition is true; checks it every millisecond.

    Raises:
        SystemExit: if the run ends before the condition is true, or if the wait is longer than `LIMIT`.
    """
    ends = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None or time.monotonic() > ends:
            raise SystemExit(f"the run ended, or made no progress:\n{run.with_suffix('.txt').read_text()}")
        time.sleep(0.001)


def interrupt(config: Path, run: Path, num_processes: int, *, step: int, in_save: bool, delay: float) -> dict[str, Any]:
    """Starts or resumes a run, and kills it `delay` seconds after a step, or in the next save if `in_save` is true."""
    part = run / f"{LAST}.part"
    began = time.monotonic()
    with started(config, run, num_processes) as process:
        wait_until(lambda: step_of(run) >= step, process, run)
        if in_save:
            wait_until(part.exists, process, run)
        else:
            time.sleep(delay)
        kill(process)
    saved = 0
    if (run / LAST).exists():
        state = load_checkpoint(run / LAST)
        saved = state["position"]["epoch"] * state["num_steps"] + state["position"]["step"]
    return {
        "seconds": time.monotonic() - began,
        "step": step_of(run),
        "saved": saved,
        "in_save": part.exists(),
    }


def logged(run: Path) -> list[dict[str, Any]]:
    """Returns a run's log without the entries that depend on the clock."""
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def equal(first: Any, second: Any) -> bool:
    """Returns whether nested values are equal; tensors must be equal bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def compare(alone: Path, killed: Path) -> bool:
    """Compares two runs part by part, and prints each verdict; returns whether all parts are equal."""
    states = [load_checkpoint(run / LAST) for run in (alone, killed)]
    verdicts = {f"{LAST}: {part}": equal(states[0][part], states[1].get(part)) for part in states[0]}
    for name in sorted(path.name for path in alone.glob("*.safetensors")):
        # Contents are compared, not bytes, because safetensors may write the metadata entries in any order.
        files = [read_checkpoint(run / name) for run in (alone, killed)]
        verdicts[name] = files[0].metadata == files[1].metadata and equal(files[0].state, files[1].state)
    verdicts[f"{LOG} without times"] = logged(alone) == logged(killed)
    for name, verdict in verdicts.items():
        print(f"{name:28s} {'equal' if verdict else 'DIFFERENT'}")
    return all(verdicts.values())


def main() -> int:
    """Runs, kills and compares; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--keep", type=Path, help="write the runs to this folder and keep them")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends started processes too
    num_steps = num_training_images(arguments.task, NUM_IMAGES_A_CLASS) // BATCH_SIZE
    num_all, processes = arguments.epochs * num_steps, arguments.processes
    print(f"{platform.platform()}, torch {torch.__version__}, xcit {xcit.__version__}")
    print(
        f"{arguments.task}, {processes} process{'es' * (processes > 1)}, {arguments.epochs} epochs of {num_steps} "
        f"steps, a save every {SAVE_EVERY} and at an epoch's end, seed of the moments {arguments.seed}"
    )
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        draw_squares(folder / "data", NUM_IMAGES_A_CLASS)
        fields = {"batch_size": BATCH_SIZE, "num_workers": 2, "save_every_steps": SAVE_EVERY}
        config, alone, killed = folder / "squares.yaml", folder / "alone", folder / "killed"
        save_yaml(squares_config(arguments.task, folder / "data", epochs=arguments.epochs, run=fields), config)
        finish(config, alone, processes)
        print("kill   at step   after   reached   saved   in a save")
        for number in range(arguments.kills):
            share = num_all / arguments.kills
            # Later than the last step before the previous kill, so that the run makes progress between two kills.
            step = max(int((number + 0.8 * draw.random()) * share), step_of(killed)) + 1
            delay = draw.uniform(0, 0.2)
            if step > num_all - SAVE_EVERY:
                raise SystemExit(f"{arguments.kills} kills are too many for {num_all} steps: give more --epochs")
            done = interrupt(config, killed, processes, step=step, in_save=number % 2 == 1, delay=delay)
            print(
                f"{number + 1:4d} {step:9d} {done['seconds']:6.1f}s {done['step']:9d} {done['saved']:7d}   "
                f"{'yes' if done['in_save'] else 'no'}",
                flush=True,
            )
        finish(config, killed, processes)
        same = compare(alone, killed)
    print(f"{arguments.kills} kills, {num_all} steps: {'bit-equal' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
