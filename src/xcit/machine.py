"""This machine: what it is called, for figures that depend on it, what memory it has, and where it computes."""

import contextlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from xcit.errors import XCiTError

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"


def processor() -> str:
    """The processor's model, as the system names it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory() -> int | None:
    """Bytes of memory that a process can still take without swapping; none where the system does not say."""
    found = []
    information = Path("/proc/meminfo")
    if information.is_file():
        found += [_kilobytes(information, "MemAvailable")]
    elif hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found += [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # A container's own limit may be less.
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found += [limit - int((group / "memory.current").read_text(encoding="ascii"))]
    return max(0, min(found)) if found else None


def resident_memory() -> int | None:
    """Bytes of this process that are in memory now; none where the system does not say."""
    return _kilobytes(_STATUS, "VmRSS") if _STATUS.is_file() else None


def peak_resident_memory() -> int | None:
    """The most bytes of this process that were in memory at once since `forget_peak`; none where not known."""
    return _kilobytes(_STATUS, "VmHWM") if _STATUS.is_file() else None


def forget_peak() -> None:
    """Starts the count of `peak_resident_memory` anew.

    Raises:
        OSError: if the system does not allow that: the count then is of the process's whole life.
    """
    _CLEAR.write_text(_RESET_HIGH_WATER_MARK, encoding="ascii")


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"{file} has no {name}")


def find_device(name: "str | torch.device") -> "torch.device":
    """A device of this machine.

    Raises:
        XCiTError: if there is none of that name, or it can't compute.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # there and back, for the meta device gives nothing back
    except (RuntimeError, AssertionError) as error:
        raise XCiTError(f"device {name}: not on this machine ({str(error).splitlines()[0]})") from None
    return device
