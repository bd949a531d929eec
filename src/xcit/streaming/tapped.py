"""Collects the backbone's tokens for a dense head (a detector or a segmenter) on an image of any size.

A tap stores the tokens after one block of the backbone, in memory or in a scratch file. The head reads rows of taps:

    needs = HeadNeeds(key="...", memory=10**8, scratch=0)
    with tapped(xcit, blocks, source, needs, memory="4GB") as run:
        levels = pyramid_rows(pyramid, [run.taps[block] for block in blocks])  # read these by rows

A head saves its progress with `TappedRun.save`, and may write its own files to `TappedRun.folder`. If a run was killed,
the next run finds the saved progress and the files. A run with taps in memory has no folder and can't be resumed.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.images.rows import ImageRows, rows_info
from xcit.machine import forget_peak, peak_resident_memory, resident_memory
from xcit.models.xcit import FusedXCiT
from xcit.streaming.budget import Budget, Memory, as_budget, format_size
from xcit.streaming.encode import StreamProgress, encode
from xcit.streaming.outputs import Wanted
from xcit.streaming.pixels import image_shape
from xcit.streaming.plan import OVERHEAD, Costs, Plan, make_plan
from xcit.streaming.report import Report
from xcit.streaming.state import VERSION, RunFolder, write_state
from xcit.streaming.taps import MemoryTap, ScratchTap, Tap


@dataclass(frozen=True, kw_only=True)
class HeadNeeds:
    """The resources that a head needs in addition to the tokens of the backbone.

    Attributes:
        key: text that identifies the model and the requested outputs. A run resumes an earlier run only if their keys
            are equal.
        memory: smallest number of bytes of memory with which the passes of the head can run.
        scratch: size in bytes of the files that the head always writes to the run's folder.
        maps: size in bytes of the maps that the head stores in memory if the taps are in memory, otherwise in the run's
            folder.
        passes: number of passes that the head makes over the image.
        cost: duration of all passes of the head, divided by the duration of one pass of the backbone. It is used to
            report progress. None means `passes`.
    """

    key: str
    memory: int
    scratch: int = 0
    maps: int = 0
    passes: int = 1
    cost: int | None = None


class TappedRun:
    """The taps of a run, and the progress of its head.

    Attributes:
        taps: the taps, by block.
        grid: height H and width W of the token grid.
        folder: folder for the head's own files; None if the taps are in memory.
        memory: number of bytes of memory that the head may use.
        earlier: the progress that the head saved in an earlier run; empty if no progress was saved.
    """

    def __init__(
        self,
        taps: Mapping[int, Tap],
        grid: tuple[int, int],
        memory: int,
        encoder_passes: int,
        needs: HeadNeeds,
        progress: StreamProgress | None,
    ) -> None:
        self.taps, self.grid, self.memory = taps, grid, memory
        self.folder: Path | None = None
        self.earlier: dict[str, Any] = {}
        self._checksums: dict[str, int] = {}
        self._encoder_passes, self._head_passes = encoder_passes, needs.passes
        self._cost = needs.passes if needs.cost is None else needs.cost
        self._progress = progress
        self._began = time.perf_counter()
        self._memory_before: int | None = None
        self._report: Report | None = None

    def save(self, head: Mapping[str, Any]) -> None:
        """Saves the progress of the head as JSON, completely or not at all. Does nothing if the run has no folder.

        Raises:
            XCiTError: if the file can't be written.
        """
        if self.folder is not None:
            found = {"version": VERSION, "taps": self._checksums, "head": dict(head)}
            write_state(self.folder / "state.json", found)

    def advance(self, done: float) -> None:
        """Reports the number of finished passes of the head, for example 1.5 in the middle of the second pass."""
        self._tell(round((self._encoder_passes + done * self._cost / self._head_passes) * self.grid[0]), 0)

    def report(self) -> Report:
        """Returns the report of the run so far, including the head."""
        assert self._report is not None
        peak, before = peak_resident_memory(), self._memory_before
        scratch = [tap for tap in self.taps.values() if isinstance(tap, ScratchTap)]
        return replace(
            self._report,
            passes=self._encoder_passes + self._head_passes,
            seconds=time.perf_counter() - self._began,
            peak_bytes=None if peak is None or before is None else max(0, peak - before),
            bytes_read=self._report.bytes_read + sum(tap.bytes_read for tap in scratch),
            bytes_written=self._report.bytes_written + sum(tap.bytes_written for tap in scratch),
        )

    def _tell(self, done: int, total: int) -> None:
        """Reports the number of finished rows, with a total that also includes the rows of the head."""
        if self._progress is not None:
            self._progress(done, (self._encoder_passes + self._cost) * self.grid[0])


@contextmanager
def tapped(
    model: FusedXCiT,
    blocks: Collection[int],
    source: ImageRows,
    needs: HeadNeeds,
    *,
    preprocessing: Preprocessing,
    memory: Memory = None,
    progress: StreamProgress | None = None,
) -> Iterator[TappedRun]:
    """Collects the tokens after some blocks of a backbone in taps, for an image of any size.

    Tokens that the source's mask leaves out are 0 in the taps, like the zero padding of a head's convolutions.

    Args:
        model: the backbone, on its device and in its dtype.
        blocks: indices of the blocks after which the tokens are collected.
        source: the source of the rows.
        needs: the resources that the head needs.
        preprocessing: the preprocessing, of which only mean and standard deviation are used.
        memory: limit of the memory in addition to the loaded model (see `Budget`).
        progress: called after each stripe.

    Yields:
        The run, with finished taps.

    Raises:
        XCiTError: if the memory limit is too small, the scratch disk is too small, the image does not fit the model,
            or the image can't be read.
    """
    budget = as_budget(memory)
    parameter = next(model.parameters())
    stored = budget.token_dtype or parameter.dtype
    plan, in_memory = _plan(model, source, len(set(blocks)), needs, budget)
    grid, dim, bound = plan.grid, model.config.embed_dim, budget.bound()
    tap_bytes = len(set(blocks)) * grid[0] * grid[1] * dim * stored.itemsize
    how: dict[str, Any] = {"stored": stored, "device": parameter.device, "dtype": parameter.dtype}
    passes = max(blocks) + 2
    left = bound - OVERHEAD - rows_info(source).buffer_bytes
    with suppress(OSError):
        forget_peak()
    before = resident_memory()
    with ExitStack() as stack:
        if in_memory:
            taps: dict[int, Tap] = {block: MemoryTap(grid, dim, **how) for block in set(blocks)}
            run = TappedRun(taps, grid, left - tap_bytes, passes, needs, progress)
            inner = budget
        else:
            key = f"{needs.key} {_identity(source)} {grid} {stored} {sorted(set(blocks))} {preprocessing}"
            num_bytes = tap_bytes + plan.scratch_bytes + needs.scratch + needs.maps
            folder = stack.enter_context(_folder(budget.scratch_folder(), key, num_bytes, source))
            files = {block: ScratchTap(folder.path / f"tap-{block}.bin", grid, dim, **how) for block in set(blocks)}
            for file in files.values():
                stack.callback(file.close)
            run = TappedRun(files, grid, left, passes, needs, progress)
            run.folder = folder.path
            inner = Budget(memory=bound, scratch=folder.path, token_dtype=budget.token_dtype)
            if _is_encoded(run, files):
                run._report = _finished(source, plan, passes)
        run._memory_before = before
        if run._report is None:
            wanted = Wanted(maps=run.taps, left_out=0.0)
            run._report = encode(
                model, source, wanted, preprocessing=preprocessing, memory=inner, progress=run._tell
            ).report
            if not in_memory:
                run._checksums = {str(block): file.checksum() for block, file in files.items()}
                run.save({})
        yield run


def _plan(model: FusedXCiT, source: ImageRows, num_taps: int, needs: HeadNeeds, budget: Budget) -> tuple[Plan, bool]:
    """Returns the plan for the passes of the backbone, and whether the taps are stored in memory."""
    shape, bound = image_shape(source), budget.bound()
    stored = budget.token_dtype or next(model.parameters()).dtype
    tap_bytes = num_taps * Costs(model, shape, stored).token_bytes
    least = OVERHEAD + shape.buffer_bytes + needs.memory
    if least > bound:
        raise XCiTError(
            f"{rows_info(source).name}: the head of the model takes {format_size(least)} of memory for an image of "
            f"{source.width} x {source.height} pixels, but the limit is {format_size(bound)}: give more memory"
        )
    if tap_bytes + needs.maps + least <= bound:
        with suppress(XCiTError):
            plan = make_plan(model, shape, bound, token_dtype=stored, output_bytes=tap_bytes + needs.maps)
            if plan.place != "scratch":
                return plan, True
    return make_plan(model, shape, bound, token_dtype=stored), False


@contextmanager
def _folder(scratch: Path, key: str, num_bytes: int, source: ImageRows) -> Iterator[RunFolder]:
    """Opens the folder of a run. The folder is removed at the end, unless the run fails and can be resumed."""
    folder = RunFolder(scratch, key, num_bytes)
    keep = False
    try:
        yield folder
    except BaseException:
        keep = rows_info(source).identity is not None and any(folder.path.rglob("state.json"))
        raise
    finally:
        folder.leave(keep=keep)


def _identity(source: ImageRows) -> str:
    """Returns a text that identifies the image. If the source has no identity, the text is new for each call."""
    identity = rows_info(source).identity
    return identity if identity is not None else f"of a process of its own {id(source)} {time.time_ns()}"


def _is_encoded(run: TappedRun, files: Mapping[int, ScratchTap]) -> bool:
    """Returns whether an earlier run finished the taps and they have not changed since then."""
    assert run.folder is not None
    state = run.folder / "state.json"
    try:
        found = json.loads(state.read_text(encoding="ascii"))
        checksums, earlier = found["taps"], dict(found["head"])
        is_good = found["version"] == VERSION and all(
            file.can_go_on() and file.checksum() == checksums[str(block)] for block, file in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, XCiTError):
        is_good = False
    if is_good:
        run._checksums, run.earlier = checksums, earlier
    else:
        state.unlink(missing_ok=True)
    return is_good


def _finished(source: ImageRows, plan: Plan, passes: int) -> Report:
    """Returns the report of a run for which an earlier run has finished all passes of the backbone."""
    return Report(
        height=source.height,
        width=source.width,
        plan=plan,
        passes=passes,
        resumed_from=passes,
        seconds=0.0,
        peak_bytes=None,
        bytes_read=0,
        bytes_written=0,
    )
