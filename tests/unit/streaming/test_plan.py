"""Tests that plans are within their memory bound, and that the planned memory agrees with measurements."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xcit.errors import XCiTError
from xcit.machine import free_memory, peak_resident_memory
from xcit.models import XCiT, XCiTConfig
from xcit.models.xcit import FusedXCiT
from xcit.streaming import Budget, ImageShape, Plan, as_budget, format_size, largest_square, make_plan
from xcit.streaming.budget import parse_size


@pytest.fixture(scope="module")
def nano() -> FusedXCiT:
    model = XCiT(XCiTConfig(patch_size=16, embed_dim=128, depth=1, cls_depth=1, num_heads=4)).fuse()
    assert isinstance(model, FusedXCiT)
    return model


def plan_of(model: FusedXCiT, bound: int, side: int = 32768, **more: int) -> Plan:
    return make_plan(model, ImageShape(height=side, width=side, **more), bound, token_dtype=torch.float32)


def test_tokens_stay_in_memory_where_they_fit(nano: FusedXCiT) -> None:
    large, small = plan_of(nano, 4 * 10**9), plan_of(nano, 10**9)
    assert (large.place, large.scratch_bytes, large.grid) == ("device", 0, (2048, 2048))
    tokens = 2048 * 2048 * 128 * 4
    assert tokens < large.peak_bytes <= 4 * 10**9
    assert (small.place, small.scratch_bytes) == ("scratch", 2 * tokens)
    assert small.peak_bytes <= 10**9


def test_stripes_get_smaller_with_the_bound_until_there_is_none(nano: FusedXCiT) -> None:
    plans = [plan_of(nano, bound * 10**6, read_rows=512) for bound in (1000, 300, 150, 100)]
    for plan, bound in zip(plans, (1000, 300, 150, 100), strict=True):
        assert plan.peak_bytes <= bound * 10**6
    assert [plan.read_rows for plan in plans] == sorted((plan.read_rows for plan in plans), reverse=True)
    with pytest.raises(XCiTError, match=r"32768 x 32768 pixels can't be processed in 60 MB of memory: at least \d+ MB"):
        plan_of(nano, 60 * 10**6)


def test_what_the_source_holds_and_outputs_count(nano: FusedXCiT) -> None:
    shape, bound = ImageShape(height=512, width=512), 10**9
    plain = make_plan(nano, shape, bound, token_dtype=torch.float32).peak_bytes
    more = make_plan(nano, shape, bound, token_dtype=torch.float32, output_bytes=10**7).peak_bytes
    held = ImageShape(height=512, width=512, buffer_bytes=10**7)
    assert more == plain + 10**7 == make_plan(nano, held, bound, token_dtype=torch.float32).peak_bytes


def test_the_largest_square_keeps_the_bound_and_the_next_does_not(nano: FusedXCiT) -> None:
    side, plan = largest_square(nano, 10**9, place="device")
    assert plan.peak_bytes <= 10**9 and side % 16 == 0
    assert plan_of(nano, 10**9, side).place == "device"
    assert plan_of(nano, 10**9, side + 16).place == "scratch"
    streamed, _ = largest_square(nano, 10**9, place="scratch")
    assert streamed > 10 * side
    with pytest.raises(XCiTError, match="no image can be processed in"):
        largest_square(nano, 10**6, place="device")


_MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from xcit.models import Preprocessing, XCiT, XCiTConfig
from xcit.streaming import Budget, Wanted, encode

class Stripes:
    channels = 3
    def __init__(self, height, width):
        self.height, self.width = height, width
    def read(self, start, end):
        return np.full((end - start, self.width, 3), start % 256, np.uint8)

model = XCiT(XCiTConfig(patch_size=16, embed_dim=128, depth=1, cls_depth=1, num_heads=4)).eval().fuse()
found = []
for height, width, bound in json.loads(sys.argv[2]):
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)  # what the case before has freed would be taken again
    budget = Budget(memory=bound, scratch=Path(sys.argv[1]))
    wanted = Wanted(class_tokens=frozenset({1}))
    report = encode(model, Stripes(height, width), wanted, preprocessing=Preprocessing(), memory=budget).report
    found.append([report.plan.place, report.plan.peak_bytes, report.peak_bytes])
print(json.dumps(found))
"""


@pytest.mark.skipif(peak_resident_memory() is None, reason="this system does not say what a process takes")
def test_the_plan_is_what_is_measured(tmp_path: Path) -> None:
    cases = [(64, 64, 10**9), (1024, 4096, 10**9), (128, 32768, 10**9), (1024, 16384, 80 * 10**6)]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", _MEASURE, str(tmp_path), json.dumps(cases)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert [place for place, _, _ in found] == ["device", "device", "device", "scratch"]
    for _, planned, measured in found:
        assert measured <= planned <= 2 * measured + 64 * 10**6, found


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), ("750 mb", 750 * 10**6), ("1.5G", 15 * 10**8), ("1e9", 10**9), ("7", 7)],
)
def test_sizes_as_text(text: str, size: int) -> None:
    assert parse_size(text) == as_budget(text).memory == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4 elephants", "0", "1.2.3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(XCiTError, match="is not a size such as 4GB"):
        parse_size(text)


def test_the_default_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcit.streaming.budget.free_memory", lambda: 1000)
    assert Budget().bound() == 500
    assert (free_memory() or 0) > 0
    monkeypatch.setattr("xcit.streaming.budget.free_memory", lambda: None)
    with pytest.raises(XCiTError, match="give the memory to use"):
        Budget().bound()
    with pytest.raises(XCiTError, match="must be above 0"):
        as_budget(0)


def test_sizes_for_people() -> None:
    assert [format_size(size) for size in (5, 1200, 3.2e6, 4.29e9, 2e12)] == [
        "5 bytes", "1 kB", "3 MB", "4.3 GB", "2.0 TB",
    ]  # fmt: skip
