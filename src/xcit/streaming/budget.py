"""How much memory a streamed pass may take, and where the rest goes."""

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
    """What a pass over a large image may use.

    Attributes:
        memory: the most bytes of resident memory that it may add to the loaded model; none is half of what is free.
        scratch: a folder for tokens that do not fit; none is `scratch` in the folder where weights are kept.
        token_dtype: of tokens between blocks; none is the model's precision. bfloat16 halves them and is not exact.
    """

    memory: int | None = None
    scratch: Path | None = None
    token_dtype: torch.dtype | None = None

    def bound(self) -> int:
        """`memory`, or its default.

        Raises:
            XCiTError: if none is given and the system does not say how much is free.
        """
        if self.memory is not None:
            return self.memory
        free = free_memory()
        if free is None:
            raise XCiTError("this system does not say how much memory is free: give the memory to use, such as 4GB")
        return free // 2

    def scratch_folder(self) -> Path:
        """`scratch`, or its default."""
        return self.scratch or cache_dir() / "scratch"


Memory = int | str | Budget | None
"""A bound in bytes or as text such as "4GB", a whole budget, or none for half of the free memory."""


def as_budget(memory: Memory) -> Budget:
    """A budget of whatever says how much memory may be used.

    Raises:
        XCiTError: if it is a text that means no size, or not above 0.
    """
    if isinstance(memory, Budget):
        return memory
    if isinstance(memory, str):
        memory = parse_size(memory)
    if memory is not None and memory <= 0:
        raise XCiTError(f"memory is {memory} bytes, must be above 0")
    return Budget(memory=memory)


def parse_size(text: str) -> int:
    """Bytes from text such as 4GB, 512 MiB or 1e9: GB are 10^9, GiB 2^30.

    Raises:
        XCiTError: if it is no size.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or number <= 0:
        raise XCiTError(f"{text!r} is no size such as 4GB, 512MiB or 750MB")
    return int(number * _UNITS[(found[2] or "").upper()])


def format_size(num_bytes: float) -> str:
    """Bytes as a person reads them, such as 4.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit in ("bytes", "kB", "MB") else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
