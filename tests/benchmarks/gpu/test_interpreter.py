"""Runs the tests of the Triton kernels in Triton's interpreter, on the CPU.

The tests run in a separate process. When a kernel is defined, Triton decides whether the interpreter runs the kernel.
In this process, the setting would also affect kernels that `torch.compile` creates in other tests.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from gpu.kernels import is_available

KERNEL_TESTS = Path(__file__).parent / "kernels"


def test_kernels_are_for_cuda_alone() -> None:
    assert not is_available(torch.device("cpu"))
    assert is_available(torch.device("cuda")) == (find_spec("triton") is not None)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it comes with torch for Linux")
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(KERNEL_TESTS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "InterpreterError: TypeError('only 0-dimensional arrays can be converted" in finished.stdout:
        pytest.skip("the interpreter of this Triton can't run a loop with this NumPy (seen: 3.6.0 with 2.4)")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert " passed" in finished.stdout and "failed" not in finished.stdout
