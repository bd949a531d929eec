"""The outputs of a streamed run, and the destinations of maps of tokens."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.extras import need_packages

_CHUNK_BYTES = 2**24
"""Size of the rows that a Zarr map collects before it writes them."""


class TokenMap(Protocol):
    """A destination for the tokens (H, W, D) after a block, which arrive in rows from the first to the last."""

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Called once before any rows, with H, W and D, and whether a run that was killed is resumed."""

    def write(self, start: int, rows: Tensor) -> None:
        """Takes rows (k, W, D) in float32 on the CPU; they are valid until it returns."""

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the bytes that it keeps in memory."""

    def can_go_on(self) -> bool:
        """Whether it still has everything that a killed run wrote to it."""

    def discard(self) -> None:
        """Called if a run fails and can't be resumed."""


class ArrayMap:
    """A map in memory: `array`, float32 (H, W, D)."""

    def __init__(self) -> None:
        self.array = np.empty((0, 0, 0), np.float32)

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Creates the array."""
        self.array = np.empty((*grid, dim), np.float32)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies the rows."""
        self.array[start : start + len(rows)] = rows.numpy()

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the size of the whole array."""
        return 4 * grid[0] * grid[1] * dim

    def can_go_on(self) -> bool:
        """Returns false, because memory ends with its process."""
        return False

    def discard(self) -> None:
        """Releases the array."""
        self.array = np.empty((0, 0, 0), np.float32)


class NpyMap:
    """A map in a .npy file, float32 (H, W, D), which can be opened by `np.load(path, mmap_mode="r")`.

    Until `finish` it is written beside `path`, to a file whose name ends in .part.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._row_bytes = 0
        self._start = 0

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Writes the header, unless a run is resumed."""
        header = self._header(grid, dim)
        self._start, self._row_bytes = len(header), 4 * grid[1] * dim
        if not goes_on:
            self.discard()
            self._put(0, header)

    def write(self, start: int, rows: Tensor) -> None:
        """Writes the rows to their place in the file.

        Raises:
            XCiTError: if the rows can't be written.
        """
        self._put(self._start + start * self._row_bytes, rows.contiguous().numpy().data.cast("B"))

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns 0."""
        return 0

    def can_go_on(self) -> bool:
        """Whether the file exists."""
        return self._part.exists()

    def finish(self) -> None:
        """Gives the file its final name."""
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes the file."""
        self._part.unlink(missing_ok=True)

    def _put(self, offset: int, data: bytes | memoryview) -> None:
        try:
            with self._part.open("r+b" if self._part.exists() else "w+b") as file:
                file.seek(offset)
                file.write(data)
        except OSError as error:
            raise XCiTError(f"{self.path}: can't be written: {error.strerror}") from None

    def _header(self, grid: tuple[int, int], dim: int) -> bytes:
        import io

        stream = io.BytesIO()
        described: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (*grid, dim)}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()


class ZarrMap:
    """A map in a Zarr array, float32 (H, W, D), in chunks of whole tokens.

    Before `finish` is called, the array is in a folder beside `path` whose name ends in .part. Rows are collected until
    they fill a row of chunks.

    Raises:
        XCiTError: if zarr is not installed, or `path` exists and is not a Zarr array.
    """

    def __init__(self, path: Path) -> None:
        need_packages(f"{path}: Zarr", "zarr")  # checked before an hour of work, not after it
        if path.exists() and not (path / "zarr.json").exists() and not (path / ".zarray").exists():
            raise XCiTError(f"{path}: is there, and is no Zarr array: choose another name")
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._array: Any = None
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Creates the array, unless a run is resumed."""
        import zarr

        if goes_on and self._part.exists():
            self._array = zarr.open_array(str(self._part), mode="r+")
            return
        self.discard()
        chunks = (self._chunk_rows(grid, dim), min(grid[1], 256), dim)
        self._array = zarr.create_array(
            str(self._part), shape=(*grid, dim), chunks=chunks, dtype="float32", dimension_names=("y", "x", "c")
        )

    def write(self, start: int, rows: Tensor) -> None:
        """Writes the rows that complete chunks, and keeps a copy of the others.

        Raises:
            XCiTError: if the rows can't be written.
        """
        height, at_once = self._array.shape[0], self._array.chunks[0]
        self._waiting.append(rows.clone())
        self._num_waiting += len(rows)
        end = start + len(rows)
        first = end - self._num_waiting
        last = end if end == height else end - end % at_once
        if last <= first:
            return
        waiting = torch.cat(self._waiting)
        try:
            self._array[first:last] = waiting[: last - first].numpy()
        except OSError as error:
            raise XCiTError(f"{self.path}: can't be written: {error.strerror}") from None
        self._waiting, self._num_waiting = [waiting[last - first :].clone()], end - last

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the size of three rows of chunks: they are collected, concatenated and compressed."""
        return 3 * 4 * self._chunk_rows(grid, dim) * grid[1] * dim

    def can_go_on(self) -> bool:
        """Whether the array exists."""
        return self._part.exists()

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Gives the array its attributes and its final name."""
        self._array.attrs.update(dict(attributes))
        if self.path.exists():
            shutil.rmtree(self.path)
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes the array."""
        shutil.rmtree(self._part, ignore_errors=True)

    def _chunk_rows(self, grid: tuple[int, int], dim: int) -> int:
        return max(1, min(64, grid[0], _CHUNK_BYTES // (4 * grid[1] * dim)))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The requested outputs, by block: XCA blocks count from 0, then class attention blocks, as in `extract_feat`.

    Outputs of the last block are taken after the final norm, if the model has one.

    Attributes:
        class_tokens: blocks whose class token is wanted.
        means: blocks whose mean of the patch tokens is wanted.
        maps: destinations of the patch tokens, by block.
        attention: the class attention block whose attention over the patches is wanted, as a map (M, H, W) in memory.
        left_out: value in maps of the tokens that a mask leaves out.
    """

    class_tokens: frozenset[int] = frozenset()
    means: frozenset[int] = frozenset()
    maps: Mapping[int, TokenMap] = field(default_factory=dict)
    attention: int | None = None
    left_out: float = float("nan")

    def last_block(self) -> int:
        """Returns the last block that has to run.

        Raises:
            XCiTError: if no output is requested.
        """
        blocks = {*self.class_tokens, *self.means, *self.maps, *([] if self.attention is None else [self.attention])}
        if not blocks:
            raise XCiTError("nothing is wanted of the pass: name a block's class token, mean, map or attention")
        return max(blocks)

    def check(self, depth: int, cls_depth: int) -> None:
        """Checks that all blocks exist.

        Raises:
            XCiTError: if a block does not exist; the message names it.
        """
        class_blocks = {*self.class_tokens, *([] if self.attention is None else [self.attention])}
        for block in (*class_blocks, *self.means, *self.maps):
            if not 0 <= block < depth + cls_depth:
                raise XCiTError(f"there is no block {block}: the model has {depth + cls_depth}, counted from 0")
            if block in class_blocks and block < depth:
                raise XCiTError(f"block {block} has no class token: it enters at block {depth} of {depth + cls_depth}")


@dataclass
class Taken:
    """The collected outputs; maps are in the destinations of `Wanted.maps`.

    Attributes:
        class_tokens: (D,) by block.
        means: (D,) by block.
        attention: (M, H, W), each head's attention over the patches. For each head, the sum of the map and of
            `class_shares` is 1.
        class_shares: (M,), the share of each head's attention on the class token.
    """

    class_tokens: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None
    class_shares: Tensor | None = None


def as_map_rows(rows: Tensor) -> Tensor:
    """Converts rows to the form that maps take: float32 on the CPU."""
    return rows.to("cpu", torch.float32)
