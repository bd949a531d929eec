"""Runs Python programs in separate processes without importing torch again: one process, or a group of ranks.

The processes are forks of a server that has imported the modules for training. In a new interpreter, the imports would
take ten seconds of processor time, which is longer than most of these programs run. The programs get the same arguments
and environment as from `python` or `torchrun`.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

PRELOADED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "timm.data",
    "timm.optim",
    "timm.scheduler",
    "xcit.training.run",
    "xcit.measure.knn",
    "xcit.measure.linear",
    "xcit.training.tasks.detection",
    "xcit.training.tasks.segmentation",
)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Done:
    """The result of a program: the first exit status that is not 0 (else 0), and the output of all its processes."""

    status: int
    out: str
    err: str


@dataclass
class Forked:
    """A running program `python ARGUMENTS...`, in one process, or in several processes as from torchrun.

    The program runs in the current folder and environment. Each process has one thread, because the number of threads
    changes the rounding of sums. The output is written to two files in the folder `outputs`.
    """

    arguments: Sequence[str]
    num_processes: int
    outputs: Path
    processes: list[ForkServerProcess] = field(init=False)

    def __post_init__(self) -> None:
        self._files = [self.outputs / name for name in ("out", "err")]
        for path in self._files:
            path.touch()
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        ranks: list[dict[str, str]] = [{}]
        if self.num_processes > 1:
            common: dict[str, object] = {"WORLD_SIZE": self.num_processes, "LOCAL_WORLD_SIZE": self.num_processes}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
            ranks = [
                {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
                for rank in range(self.num_processes)
            ]
        self.processes = [
            _context.Process(target=_run, args=(list(self.arguments), Path.cwd(), environment | rank, self._files))
            for rank in ranks
        ]
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        """Whether any process is running."""
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all running processes."""
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def finish(self) -> Done:
        """Waits for the end of all processes; if a process fails, kills the others, as torchrun does."""
        while self.running:
            if any(process.exitcode for process in self.processes):
                self.send(signal.SIGKILL)
            time.sleep(0.01)
        status = next((process.exitcode for process in self.processes if process.exitcode), 0)
        return Done(status, *(path.read_text(encoding="utf-8") for path in self._files))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _run(arguments: list[str], folder: Path, environment: dict[str, str], outputs: Sequence[Path]) -> None:
    """Runs the program in the forked process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the default start method, not the server's
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # as in tests/conftest.py; a killed process loses no written data
    for number, path in enumerate(outputs, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
