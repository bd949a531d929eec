"""Defines how much memory a streamed run may use, and the folder for tokens that do not fit in this memory."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from xcit.errors import XCiTError
from xcit.machine import free_memory
from xcit.weights.fetch import cache_dir

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The resources that a streamed run may use.

    Attributes:
        memory: limit of the resident memory in addition to the loaded model, in bytes; None means half of the free
            memory.
        scratch: folder for tokens that do not fit in memory; None means the folder `scratch` in the folder where
            downloaded weights are cached.
        token_dtype: dtype in which tokens are stored between two blocks; None means the dtype of the model. bfloat16
            halves the size of float32 tokens, but rounds them.
    """

    memory: int | None = None
    scratch: Path | None = None
    token_dtype: torch.dtype | None = None

    def bound(self) -> int:
        """Returns the limit in bytes: `memory`, or half of the free memory if `memory` is None.

        Raises:
            XCiTError: if `memory` is None and the system does not report its free memory.
        """
        if self.memory is not None:
            return self.memory
        free = free_memory()
        if free is None:
            raise XCiTError("this system does not say how much memory is free: give the memory to use, such as 4GB")
        return free // 2

    def scratch_folder(self) -> Path:
        """Returns `scratch`, or the default folder if `scratch` is None."""
        return self.scratch or cache_dir() / "scratch"


Memory = int | str | Budget | None
"""A limit in bytes, a limit as text such as "4GB", a `Budget`, or None for half of the free memory."""


def as_budget(memory: Memory) -> Budget:
    """Converts a value of type `Memory` to a `Budget`.

    Raises:
        XCiTError: if a text is not a size, or the limit is not above 0.
    """
    if isinstance(memory, Budget):
        return memory
    if isinstance(memory, str):
        memory = parse_size(memory)
    if memory is not None and memory <= 0:
        raise XCiTError(f"memory is {memory} bytes, but must be above 0")
    return Budget(memory=memory)


def parse_size(text: str) -> int:
    """Converts a size such as "4GB", "512 MiB" or "1e9" to bytes. 1 GB is 10^9 bytes, and 1 GiB is 2^30 bytes.

    Raises:
        XCiTError: if the text is not a size above 0.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise XCiTError(f"{text!r} is not a size such as 4GB, 512MiB or 750MB")
    return int(number * _UNITS[(found[2] or "").upper()])


def format_size(num_bytes: float) -> str:
    """Formats a number of bytes with a suitable unit, such as "4.3 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit in ("bytes", "kB", "MB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
