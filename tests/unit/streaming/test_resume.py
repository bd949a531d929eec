"""Tests that a run with scratch files that ends early is resumed after its last finished pass, or leaves no files."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streaming_support import picture

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.rows import Pixels, RowsInfo
from xcit.models import XCiT
from xcit.streaming import ArrayMap, Budget, NpyMap, Place, Wanted, encode

ROWS = 16  # rows of the picture's tokens
Force = Callable[[Place, int], None]


class Stop(Exception):
    """Stands for any error that ends a run."""


def stop_at(pass_number: int, rows: int = 5) -> Callable[[int, int], None]:
    """Returns a progress callback that ends the run in this pass (counted from 0)."""

    def progress(done: int, total: int) -> None:
        if done >= pass_number * ROWS + rows:
            raise Stop

    return progress


@pytest.mark.parametrize("pass_number", range(6))
def test_a_run_goes_on_from_the_last_finished_pass(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path, tmp_path: Path, pass_number: int
) -> None:
    force("scratch", 3)
    budget = Budget(memory=10**9, scratch=scratch)

    def wanted(name: str) -> Wanted:
        maps = {1: NpyMap(tmp_path / f"{name}-1.npy"), 4: NpyMap(tmp_path / f"{name}-4.npy")}
        return Wanted(class_tokens=frozenset({3, 4}), means=frozenset({0, 2, 4}), maps=maps)

    expected = encode(model, source, wanted("whole"), memory=budget)
    with pytest.raises(Stop):
        encode(model, source, wanted("killed"), memory=budget, progress=stop_at(pass_number))
    found = encode(model, source, wanted("killed"), memory=budget)
    assert found.report.resumed_from == pass_number
    for block in (3, 4):
        assert torch.equal(found.taken.class_tokens[block], expected.taken.class_tokens[block])
    for block in (0, 2, 4):
        assert torch.equal(found.taken.means[block].float(), expected.taken.means[block].float())
    for block in (1, 4):
        parts = [tmp_path / f"{name}-{block}.npy.part" for name in ("whole", "killed")]
        assert np.array_equal(np.load(parts[0]), np.load(parts[1]))
    assert not list(scratch.iterdir())


def test_what_is_left_is_what_resumes(model: XCiT, source: ArrayRows, force: Force, scratch: Path) -> None:
    force("scratch", 3)
    budget, wanted = Budget(memory=10**9, scratch=scratch), Wanted(class_tokens=frozenset({4}))
    with pytest.raises(Stop):  # an end in the first pass leaves no files
        encode(model, source, wanted, memory=budget, progress=stop_at(0))
    assert not list(scratch.iterdir())
    with pytest.raises(Stop):
        encode(model, source, wanted, memory=budget, progress=stop_at(2))
    (folder,) = scratch.iterdir()
    sizes = {file.name: file.stat().st_size for file in folder.glob("tokens-*")}
    assert sorted(sizes.values()) == [0, ROWS * 8 * 16 * 4]


def test_an_image_a_model_or_a_wish_that_changed_is_begun_anew(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path
) -> None:
    force("scratch", 3)
    budget, wanted = Budget(memory=10**9, scratch=scratch), Wanted(class_tokens=frozenset({4}))
    with pytest.raises(Stop):
        encode(model, source, wanted, memory=budget, progress=stop_at(3))
    other = ArrayRows(picture(123, 61), RowsInfo(identity="picture 2"))
    assert encode(model, other, wanted, memory=budget).report.resumed_from == 0
    unknown = ArrayRows(picture(123, 61))
    assert encode(model, unknown, wanted, memory=budget).report.resumed_from == 0
    assert encode(model, source, Wanted(class_tokens=frozenset({3})), memory=budget).report.resumed_from == 0
    bias: Any = model.head.bias
    bias.data += 1
    assert encode(model, source, wanted, memory=budget).report.resumed_from == 0
    bias.data -= 1
    # Maps in memory are lost when their process ends.
    with pytest.raises(Stop):
        encode(model, source, Wanted(maps={0: ArrayMap()}, means=frozenset({4})), memory=budget, progress=stop_at(3))
    again = encode(model, source, Wanted(maps={0: ArrayMap()}, means=frozenset({4})), memory=budget)
    assert again.report.resumed_from == 0


@pytest.mark.parametrize("damage", ["tokens", "short", "state"])
def test_scratch_files_that_a_crash_has_damaged_are_begun_anew(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path, damage: str
) -> None:
    force("scratch", 3)
    budget, wanted = Budget(memory=10**9, scratch=scratch), Wanted(class_tokens=frozenset({4}))
    expected = encode(model, source, wanted, memory=budget).taken.class_tokens[4]
    with pytest.raises(Stop):
        encode(model, source, wanted, memory=budget, progress=stop_at(3))
    (state,) = scratch.glob("*/state.json")
    tokens = state.with_name(f"tokens-{json.loads(state.read_text())['current']}.bin")
    if damage == "state":
        state.write_text(state.read_text()[:100])
    elif damage == "short":
        os.truncate(tokens, 1000)
    else:
        with tokens.open("r+b") as file:
            file.seek(5000)
            file.write(bytes(4))
    found = encode(model, source, wanted, memory=budget)
    assert found.report.resumed_from == 0 and torch.equal(found.taken.class_tokens[4], expected)


def test_two_runs_of_one_image_do_not_meet(model: XCiT, source: ArrayRows, force: Force, scratch: Path) -> None:
    force("scratch", 3)
    budget, wanted = Budget(memory=10**9, scratch=scratch), Wanted(class_tokens=frozenset({4}))

    def second(done: int, total: int) -> None:
        with pytest.raises(XCiTError, match="another run of the same image and model is using this folder"):
            encode(model, source, wanted, memory=budget)
        raise Stop

    with pytest.raises(Stop):
        encode(model, source, wanted, memory=budget, progress=second)


def test_too_little_room_is_told_before_anything_is_done(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("scratch", 3)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("xcit.streaming.state.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(XCiTError, match=r"0\.00 GB of scratch files are needed, 0\.00 GB are free"):
        encode(model, source, Wanted(means=frozenset({4})), memory=Budget(memory=10**9, scratch=scratch))
    assert not list(scratch.iterdir())


_RUN = """
import os, resource, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from streaming_support import picture, random_model
from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.rows import RowsInfo
from xcit.models import XCiTConfig
from xcit.streaming import Budget, Wanted, encode, plan

scratch, how = Path(sys.argv[1]), sys.argv[2]
model = random_model(XCiTConfig(patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5))
source = ArrayRows(picture(123, 61), RowsInfo(name="picture", identity="picture 1"))
original = plan.Costs.plan
plan.Costs.plan = lambda self, place, size, outputs: original(self, "scratch", size / 8, outputs)

def progress(done, total):
    if done >= 3 * 16 + 5:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

try:
    budget = Budget(memory=10**9, scratch=scratch)
    encode(model, source, Wanted(class_tokens=frozenset({4})), memory=budget, progress=progress)
except XCiTError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system can't kill so")
@pytest.mark.parametrize("how", ["kill", "full"])
def test_a_killed_process_and_a_full_disk(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path, how: str
) -> None:
    support = Path(__file__).parents[2] / "support"
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(support), *sys.path])}
    arguments = [sys.executable, "-c", _RUN, str(scratch), how]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if how == "kill":
        assert done.returncode == -signal.SIGKILL
    else:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert len(lines) == 1 and "can't be written: File too large" in lines[0], done.stderr
    assert len(list(scratch.iterdir())) == 1
    force("scratch", 3)
    found = encode(model, source, Wanted(class_tokens=frozenset({4})), memory=Budget(memory=10**9, scratch=scratch))
    assert found.report.resumed_from == 3
    expected = encode(model, source, Wanted(class_tokens=frozenset({4})), memory=Budget(memory=10**9, scratch=scratch))
    torch.testing.assert_close(found.taken.class_tokens[4], expected.taken.class_tokens[4], rtol=1e-5, atol=1e-6)


class Failing(ArrayRows):
    """An image whose lower half can't be read."""

    def read(self, start: int, end: int) -> Pixels:
        if end > self.height // 2:
            raise XCiTError("picture: truncated: it ends in row 61")
        return super().read(start, end)


@pytest.mark.parametrize("place", ["device", "scratch"])
def test_an_image_that_ends_too_soon_leaves_nothing(model: XCiT, force: Force, scratch: Path, place: Place) -> None:
    force(place, 3)
    with pytest.raises(XCiTError, match="truncated: it ends in row 61"):
        encode(
            model, Failing(picture(123, 61)), Wanted(means=frozenset({4})), memory=Budget(memory=10**9, scratch=scratch)
        )
    assert not scratch.exists() or not list(scratch.iterdir())


def test_a_map_in_a_file_is_left_only_where_its_run_goes_on(
    model: XCiT, source: ArrayRows, force: Force, scratch: Path, tmp_path: Path
) -> None:
    budget, part = Budget(memory=10**9, scratch=scratch), tmp_path / "map.npy.part"
    places: tuple[Place, ...] = ("device", "scratch")
    for place in places:
        force(place, 3)
        wanted = Wanted(maps={1: NpyMap(tmp_path / "map.npy")}, means=frozenset({4}))
        with pytest.raises(Stop):
            encode(model, source, wanted, memory=budget, progress=stop_at(3))
        assert part.exists() == (place == "scratch")
