"""Defines the outputs of a streamed run, and the destinations to which maps of tokens are written."""

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
"""Largest size in bytes of a row of chunks. A Zarr map collects the token rows of one row of chunks in memory."""


class TokenMap(Protocol):
    """A destination for the tokens (H, W, D) after a block. Rows of tokens are written from the first to the last."""

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Prepares the destination. This method is called once, before any rows are written.

        Args:
            grid: height H and width W of the token grid.
            dim: width D of a token.
            goes_on: whether a killed run is resumed. If true, the rows that the killed run has written must be kept.
        """

    def write(self, start: int, rows: Tensor) -> None:
        """Writes rows (k, W, D), float32 on the CPU. They may change after this method returns.

        Args:
            start: index of the first row.
            rows: the rows.
        """

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the number of bytes that the destination keeps in memory for tokens of size `grid` (H, W) and D."""

    def can_go_on(self) -> bool:
        """Returns whether the destination still contains all rows that a killed run has written."""

    def discard(self) -> None:
        """Removes all rows. This method is called if a run fails and can't be resumed."""


class ArrayMap:
    """A map in memory. Its attribute `array` is float32 (H, W, D)."""

    def __init__(self) -> None:
        self.array = np.empty((0, 0, 0), np.float32)

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Creates the array."""
        self.array = np.empty((*grid, dim), np.float32)

    def write(self, start: int, rows: Tensor) -> None:
        """Copies the rows to the array."""
        self.array[start : start + len(rows)] = rows.numpy()

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns the size of the array in bytes."""
        return 4 * grid[0] * grid[1] * dim

    def can_go_on(self) -> bool:
        """Returns false, because the array is lost if the process is killed."""
        return False

    def discard(self) -> None:
        """Releases the memory of the array."""
        self.array = np.empty((0, 0, 0), np.float32)


class NpyMap:
    """A map in a .npy file, float32 (H, W, D). The file can be opened by `np.load(path, mmap_mode="r")`.

    Before `finish` is called, the file is in the folder of `path` and its name ends in .part.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._row_bytes = 0
        self._start = 0

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Creates the file and writes its header, unless a killed run is resumed."""
        header = self._header(grid, dim)
        self._start, self._row_bytes = len(header), 4 * grid[1] * dim
        if not goes_on:
            self.discard()
            self._put(0, header)

    def write(self, start: int, rows: Tensor) -> None:
        """Writes the rows to the file.

        Raises:
            XCiTError: if the rows can't be written.
        """
        self._put(self._start + start * self._row_bytes, rows.contiguous().numpy().data.cast("B"))

    def memory(self, grid: tuple[int, int], dim: int) -> int:
        """Returns 0, because no rows are kept in memory."""
        return 0

    def can_go_on(self) -> bool:
        """Returns whether the unfinished file exists."""
        return self._part.exists()

    def finish(self) -> None:
        """Renames the finished file to `path`."""
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes the unfinished file."""
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
    """A map in a Zarr array, float32 (H, W, D). Each chunk of the array contains complete tokens.

    Rows are collected in memory until they fill a row of chunks. Before `finish` is called, the array is in
    the folder `<path>.part`.

    Raises:
        XCiTError: if zarr is not installed, or `path` exists and is not a Zarr array.
    """

    def __init__(self, path: Path) -> None:
        need_packages(f"{path}: Zarr", "zarr")  # checked first, because the passes may take an hour
        if path.exists() and not (path / "zarr.json").exists() and not (path / ".zarray").exists():
            raise XCiTError(f"{path}: exists and is not a Zarr array: choose another name")
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._array: Any = None
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    def open(self, grid: tuple[int, int], dim: int, *, goes_on: bool) -> None:
        """Creates the array, unless a killed run is resumed."""
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
        """Writes all complete rows of chunks to the array, and keeps copies of the remaining rows in memory.

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
        """Returns the size in bytes of three rows of chunks, for the collected, concatenated and compressed copies."""
        return 3 * 4 * self._chunk_rows(grid, dim) * grid[1] * dim

    def can_go_on(self) -> bool:
        """Returns whether the unfinished array exists."""
        return self._part.exists()

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Writes the attributes of the finished array, and renames it to `path`. An array at `path` is replaced."""
        self._array.attrs.update(dict(attributes))
        if self.path.exists():
            shutil.rmtree(self.path)
        self._part.replace(self.path)

    def discard(self) -> None:
        """Removes the unfinished array."""
        shutil.rmtree(self._part, ignore_errors=True)

    def _chunk_rows(self, grid: tuple[int, int], dim: int) -> int:
        return max(1, min(64, grid[0], _CHUNK_BYTES // (4 * grid[1] * dim)))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The requested outputs of blocks.

    Blocks are numbered from 0, as in `extract_feat`: first the XCA blocks, then the class attention blocks. If the
    model has a final norm, it is applied to the outputs of the last block.

    Attributes:
        class_tokens: blocks after which the class token is requested.
        means: blocks after which the mean of the patch tokens is requested.
        maps: destinations of the patch tokens, by the block after which the tokens are requested.
        attention: class attention block for which the attention to the patches is requested; None if it is not needed.
        left_out: value in maps for the tokens that a mask leaves out.
    """

    class_tokens: frozenset[int] = frozenset()
    means: frozenset[int] = frozenset()
    maps: Mapping[int, TokenMap] = field(default_factory=dict)
    attention: int | None = None
    left_out: float = float("nan")

    def last_block(self) -> int:
        """Returns the number of the last block that has to run.

        Raises:
            XCiTError: if no output is requested.
        """
        blocks = {*self.class_tokens, *self.means, *self.maps, *([] if self.attention is None else [self.attention])}
        if not blocks:
            raise XCiTError("no output is requested: request the class token, mean, map or attention of a block")
        return max(blocks)

    def check(self, depth: int, cls_depth: int) -> None:
        """Checks that all blocks exist and have the requested outputs.

        Args:
            depth: number of XCA blocks of the model.
            cls_depth: number of class attention blocks of the model.

        Raises:
            XCiTError: if a block does not exist or has no class token. The message contains the block.
        """
        class_blocks = {*self.class_tokens, *([] if self.attention is None else [self.attention])}
        for block in (*class_blocks, *self.means, *self.maps):
            if not 0 <= block < depth + cls_depth:
                raise XCiTError(f"there is no block {block}: the model has {depth + cls_depth} blocks, counted from 0")
            if block in class_blocks and block < depth:
                raise XCiTError(
                    f"block {block} has no class token: the class token enters at block {depth} of {depth + cls_depth}"
                )


@dataclass
class Taken:
    """The collected outputs, except the maps, which are in the destinations of `Wanted.maps`.

    Attributes:
        class_tokens: the class token (D,) after each requested block, by block.
        means: the mean (D,) of the patch tokens after each requested block, by block.
        attention: (M, H, W), the attention of each of the M heads to the patches; None if it is not requested. It is
            NaN for patches that a mask leaves out.
        class_shares: (M,), the attention of each head to the class token itself; None if `attention` is None. For each
            head, this number and the sum over the head's map in `attention` add up to 1.
    """

    class_tokens: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)
    attention: Tensor | None = None
    class_shares: Tensor | None = None


def as_map_rows(rows: Tensor) -> Tensor:
    """Converts rows to the dtype and device that `TokenMap.write` expects: float32 on the CPU."""
    return rows.to("cpu", torch.float32)
