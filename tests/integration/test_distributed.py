"""What two processes do together, and what a kill or a signal does to a run: real processes, started as people do.

The two scripts are the benchmarks of the same names, whose figures are published; here they run shorter.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xcit.weights.files import read_checkpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.timeout(1800)  # each process imports torch first, which on a busy machine takes a while


def run_benchmark(name: str, *arguments: object) -> str:
    """What a benchmark prints; it fails the test if it finds a difference, or anything warns."""
    command = [sys.executable, BENCHMARKS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_two_processes_reach_the_weights_of_one_and_evaluate_each_image_once():
    printed = run_benchmark("processes.py", "--epochs", 2, "--task", "classification", "dino")
    assert printed.count("within the limit") == 8
    assert printed.count("evaluation of 7 images: equal") == 8


def test_two_killed_processes_go_on_bit_for_bit_and_one_goes_on_from_them(xcit, tmp_path):
    printed = run_benchmark("kill_and_resume.py", "--processes", 2, "--kills", 1, "--epochs", 2, "--keep", tmp_path)
    assert printed.splitlines()[-1] == "1 kills, 16 steps: bit-equal"

    alone = xcit("train", "squares.yaml", "--out", "killed", "--resume", "--schedule.epochs", 3, "--device", "cpu")
    assert (alone.status, alone.err) == (0, "")
    log = [json.loads(line) for line in Path("killed/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "step"] == [*range(1, 25)]
    assert [line["epoch"] for line in log if line["kind"] == "epoch"] == [1, 2, 3]


def test_a_killed_dino_run_goes_on_bit_for_bit():
    printed = run_benchmark("kill_and_resume.py", "--task", "dino", "--kills", 1, "--epochs", 2)
    assert printed.splitlines()[-1] == "1 kills, 18 steps: bit-equal"


def test_sigterm_to_a_run_and_all_its_processes_saves_and_the_run_goes_on_bit_for_bit(xcit, trained):
    fields = ["--out", "run", "--device", "cpu", "--run.num_workers", "2", "--run.log_every", "1"]
    command = [sys.executable, "-m", "xcit", "train", trained[0] / "config.yaml", *fields]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while process.poll() is None and not Path("run/log.jsonl").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does
        _, complained = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 75
    assert complained.startswith("xcit: stopped by SIGTERM, saved in run/last.pt; go on with: ")

    assert xcit("train", "run/config.yaml", "--resume", "--device", "cpu").status == 0
    whole, cut = (read_checkpoint(run / "model.safetensors").state for run in (trained[0], Path("run")))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
