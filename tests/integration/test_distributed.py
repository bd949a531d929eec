"""Tests runs in two processes, and runs that are stopped by a kill or a signal.

They make shorter runs of `benchmarks/processes.py` and `benchmarks/kill_and_resume.py`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kill_and_resume import compare, step_of
from squares import draw_squares, squares_config

from xcit.config import save_yaml
from xcit.weights.files import read_checkpoint

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.timeout(1800)  # each process imports torch, which takes long on a busy machine


def test_two_processes_reach_the_weights_of_one_and_evaluate_each_image_once():
    """Starts a run by torchrun, as users do."""
    short = ("--epochs", "2", "--images", "8")
    command = [sys.executable, str(BENCHMARKS / "processes.py"), *short, "--task", "classification", "dino"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("within the limit") == 8
    assert done.stdout.count("evaluation of 7 images: equal") == 8


@pytest.mark.parametrize(("task", "processes", "num_steps"), [("classification", 2, 16), ("dino", 1, 18)])
def test_a_killed_run_goes_on_bit_for_bit(xcit, start, task, processes, num_steps):
    fields = {"batch_size": 8, "num_workers": 2, "save_every_steps": 3}
    draw_squares(Path("data"), 25)
    save_yaml(squares_config(task, Path("data"), epochs=2, run=fields), Path("squares.yaml"))

    def run(folder):
        command = ("-m", "xcit", "train", "squares.yaml", "--out", folder, "--resume", "auto", "--device", "cpu")
        return start(*command, processes=processes)

    alone = run("alone").finish()
    assert alone.status == 0, alone.err
    killed = run("killed")
    while killed.running and step_of(Path("killed")) < 4:
        time.sleep(0.001)
    while killed.running and not list(Path("killed").glob(".xcit-*.tmp")):  # in the middle of a save, not the first
        time.sleep(0.001)
    killed.send(signal.SIGKILL)
    assert killed.finish().status == -signal.SIGKILL
    assert Path("killed/last.pt").exists() and not Path("killed/model.safetensors").exists()
    resumed = run("killed").finish()
    assert resumed.status == 0, resumed.err
    assert compare(Path("alone"), Path("killed"))
    assert step_of(Path("killed")) == num_steps

    if processes == 2:  # one process resumes the run of two
        more = xcit("train", "squares.yaml", "--out", "killed", "--resume", "--schedule.epochs", 3, "--device", "cpu")
        assert (more.status, more.err) == (0, "")
        log = [json.loads(line) for line in Path("killed/log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log if line["kind"] == "step"] == [*range(1, 25)]
        assert [line["epoch"] for line in log if line["kind"] == "epoch"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("task", "processes", "parallel"),
    [("classification", 1, "ddp"), ("classification", 2, "ddp"), ("dino", 2, "fsdp2")],
)
def test_a_stop_inside_a_step_saves_what_a_whole_step_left(start, task, processes, parallel):
    """In the last process, the processes that read data die in the middle of a step with several parts."""
    fields = {"batch_size": 16, "max_device_batch": 2, "num_workers": 1, "evaluate_every": 2, "parallel": parallel}
    draw_squares(Path("data"), 15)
    config = squares_config(task, Path("data"), epochs=2, run=fields)
    if parallel == "fsdp2":  # saves a third of the time; test_sharded.py tests gradient clipping
        config = replace(config, optimizer=replace(config.optimizer, clip_grad=0.0))
    save_yaml(config, Path("squares.yaml"))
    program = Path(__file__).parents[1] / "support" / "stopped_in_a_step.py"

    def run(folder):
        command = ("-m", "xcit", "train", "squares.yaml", "--out", folder, "--resume", "auto", "--device", "cpu")
        done = start(*command, processes=processes).finish()
        assert done.status == 0, done.err

    run("alone")
    stopped = start(program, "squares.yaml", "stopped", 2, processes - 1, processes=processes).finish()
    assert stopped.status == 0, stopped.err
    assert step_of(Path("stopped")) == 3
    run("stopped")
    assert compare(Path("alone"), Path("stopped"))


def test_sigterm_to_a_run_and_all_its_processes_saves_and_the_run_goes_on_bit_for_bit(xcit, trained):
    fields = ["--out", "run", "--device", "cpu", "--run.num_workers", "2", "--run.log_every", "1"]
    command = [sys.executable, "-m", "xcit", "train", trained[0] / "config.yaml", *fields]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while process.poll() is None and not Path("run/log.jsonl").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does it
        _, complained = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 75
    assert complained.startswith("xcit: stopped by SIGTERM, saved in run/last.pt; resume with: ")

    assert xcit("train", "run/config.yaml", "--resume", "--device", "cpu").status == 0
    whole, cut = (read_checkpoint(run / "model.safetensors").state for run in (trained[0], Path("run")))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
