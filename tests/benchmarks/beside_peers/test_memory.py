import sys
from pathlib import Path

import pytest
import torch
from beside_peers.memory import peak_memory_in_new_process
from beside_peers.work import Case, Inference
from torch import Tensor

from xcit.measure.memory import MemoryUnknownError, resident_growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory on the CPU is measured on Linux only")

MEGABYTE = 2**20
CASE = Case(
    architecture="pico-6-p4", image_size=28, batch_size=1, train=False, dtype="float32", device="cpu", threads=1
)


def grow(images: Tensor) -> Tensor:
    """Allocates 48 MB at the same time, then 16 MB for the sum."""
    first = torch.ones(4 * MEGABYTE)
    second = torch.ones(8 * MEGABYTE)
    return first + second[: len(first)].mul_(2)


def test_the_most_that_is_alive_at_once() -> None:
    growth = resident_growth(Inference(grow, torch.zeros(1)))
    assert growth == pytest.approx(64 * MEGABYTE, rel=0.1)


def test_what_the_first_run_keeps_counts() -> None:
    kept: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        if not kept:
            kept.append(torch.ones(8 * MEGABYTE))
        return torch.ones(4 * MEGABYTE)

    assert resident_growth(Inference(forward, torch.zeros(1))) == pytest.approx(48 * MEGABYTE, rel=0.1)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert 1e4 < peak_memory_in_new_process("xcit", CASE, tmp_path) < 1e9


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo Traceback >&2; echo 'RuntimeError: no memory' >&2; exit 1", "RuntimeError: no memory"),
        ("kill -KILL $$", "the measuring process ended with status -9; it may have run out of memory"),
    ],
)
def test_a_process_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(MemoryUnknownError) as error:
        peak_memory_in_new_process("xcit", CASE, tmp_path)
    assert str(error.value) == reason
