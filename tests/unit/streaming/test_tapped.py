"""Tests taps, which store the tokens of a few blocks in memory or in files: their values, and resuming after a kill."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from streaming_support import SPEC, in_float64, picture, random_model, share_of_largest

from xcit.errors import XCiTError
from xcit.images.array_rows import ArrayRows
from xcit.images.rows import Pixels, RowsInfo
from xcit.models import XCiT, XCiTConfig
from xcit.models.xcit import FusedXCiT
from xcit.streaming import Budget, Report
from xcit.streaming.plan import OVERHEAD, Place
from xcit.streaming.tapped import HeadNeeds, tapped

CONFIG = XCiTConfig(patch_size=8, embed_dim=32, depth=4, num_heads=4, cls_depth=0, num_classes=0, global_pool="none")
NEEDS = HeadNeeds(key="a head", memory=1000, scratch=10)
BLOCKS = (1, 3)
SIZE = (300, 700)
Force = Callable[[Place, int], None]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def model() -> XCiT:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def fused(model: XCiT) -> FusedXCiT:
    fused = model.fuse()
    assert isinstance(fused, FusedXCiT)
    return fused


def rows_of(pixels: Pixels, name: str | None = "picture") -> ArrayRows:
    return ArrayRows(pixels, RowsInfo(name="picture", identity=name))


def kill(fused: FusedXCiT, source: ArrayRows, memory: Budget, *, at: float, head: dict[str, int]) -> Report:
    """Starts a run and ends it in pass `at`; if `at` is 5 or more, after the passes and after `head` is saved.

    Returns the run's report, which is empty if the passes did not finish."""
    report: list[Report] = []

    def progress(done: int, total: int) -> None:
        if done > at * 38:
            raise Killed

    def run() -> None:
        with tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory, progress=progress) as found:
            report.append(found.report())
            if head:
                found.save(head)
            raise Killed

    with pytest.raises(Killed):
        run()
    return report[0] if report else Report(**dict.fromkeys(Report.__dataclass_fields__))


@pytest.fixture
def memory(force: Force, tmp_path: Path) -> Budget:
    """Makes plans store tokens in scratch files."""
    force("scratch", 5)
    return Budget(memory=10**9, scratch=tmp_path)


@pytest.fixture(scope="module")
def expected(model: XCiT) -> Iterator[list[torch.Tensor]]:
    exact, image = in_float64(model, picture(*SIZE))
    with torch.no_grad():
        yield exact.forward_intermediates(image, BLOCKS, intermediates_only=True)  # type: ignore[misc]


@pytest.mark.parametrize("where", ["memory", "taps on scratch", "scratch"])
def test_taps_are_the_whole_images(
    where: str, fused: FusedXCiT, expected: list[torch.Tensor], force: Force, tmp_path: Path
) -> None:
    if where == "scratch":
        force("scratch", 5)
    budget, needs = Budget(memory=10**9, scratch=tmp_path), NEEDS
    if where == "taps on scratch":
        needs = HeadNeeds(key="a head", memory=10**9 - OVERHEAD - 10**5)
    done: list[tuple[int, int]] = []
    with tapped(
        fused,
        BLOCKS,
        rows_of(picture(*SIZE)),
        needs,
        preprocessing=SPEC,
        memory=budget,
        progress=lambda *rows: done.append(rows),
    ) as run:
        assert (run.folder is None) == (where == "memory")
        for block, whole in zip(BLOCKS, expected, strict=True):
            found = torch.cat([run.taps[block].read(start, min(start + 5, 38)) for start in range(0, 38, 5)])
            assert share_of_largest(found.permute(2, 0, 1)[None], whole) < 1e-5
        run.advance(1)
        report = run.report()
    assert done[-1] == (6 * 38, 6 * 38) and done == sorted(done)
    assert report.passes == 6 and report.resumed_from == 0
    tap_bytes = 38 * 88 * 32 * 4
    assert report.bytes_written == {"memory": 0, "taps on scratch": 2 * tap_bytes, "scratch": 6 * tap_bytes}[where]
    assert not any(tmp_path.iterdir())  # nothing is left behind


def test_a_killed_run_goes_on_with_its_taps_and_with_what_its_head_had_saved(
    fused: FusedXCiT, memory: Budget, tmp_path: Path
) -> None:
    source = rows_of(picture(*SIZE))
    kill(fused, source, memory, at=3.5, head={})
    assert kill(fused, source, memory, at=9, head={"rows": 7}).resumed_from == 3
    with tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory) as run:
        assert run.report().resumed_from == 5 and run.earlier == {"rows": 7}
        found = [run.taps[block].read(0, 38) for block in BLOCKS]
        with (
            pytest.raises(XCiTError, match="another run of the same image and model"),
            tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory),
        ):
            pass
    assert not any(tmp_path.iterdir())
    with tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory) as run:
        assert run.report().resumed_from == 0
        assert all(torch.equal(run.taps[block].read(0, 38), one) for block, one in zip(BLOCKS, found, strict=True))


def test_taps_that_a_crash_has_changed_are_made_anew(fused: FusedXCiT, memory: Budget, tmp_path: Path) -> None:
    source = rows_of(picture(*SIZE))
    kill(fused, source, memory, at=9, head={"rows": 7})
    (path,) = tmp_path.rglob("tap-1.bin")
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\x12\x34")
    with tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory) as run:
        assert run.report().resumed_from == 0 and run.earlier == {}


def test_an_image_that_cannot_be_known_again_leaves_nothing(fused: FusedXCiT, memory: Budget, tmp_path: Path) -> None:
    kill(fused, rows_of(picture(*SIZE), None), memory, at=9, head={"rows": 7})
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_is_said_before_the_first_pass(
    fused: FusedXCiT, memory: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, needs = rows_of(picture(*SIZE)), HeadNeeds(key="a head", memory=10**9)
    with (
        pytest.raises(XCiTError, match=r"picture: the head of the model takes 1\.1 GB .* the limit is 100 MB"),
        tapped(fused, BLOCKS, source, needs, preprocessing=SPEC, memory="100MB"),
    ):
        pass
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with (
        pytest.raises(XCiTError, match=r"GB of scratch files are needed, 0\.00 GB are free"),
        tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory=memory),
    ):
        pass


def test_tokens_that_are_left_out_are_zero(fused: FusedXCiT) -> None:
    pixels = picture(64, 96)
    source = rows_of(pixels)
    mask = torch.ones(64, 96, dtype=torch.bool).numpy()
    mask[16:40, 24:64] = False
    source.read_mask = lambda start, end: mask[start:end]  # type: ignore[attr-defined]
    with tapped(fused, BLOCKS, source, NEEDS, preprocessing=SPEC, memory="1GB") as run:
        tokens = run.taps[1].read(0, 8)
    assert not tokens[2:5, 3:8].any() and math.isfinite(float(tokens.sum())) and tokens[:2].all()
