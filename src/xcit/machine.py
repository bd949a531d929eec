"""Information about this machine: its processor, its memory and its devices."""

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
    """Returns the processor's model, as the operating system names it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_amd() -> bool:
    """Whether the processor is made by AMD."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        return "AuthenticAMD" in information.read_text(encoding="utf-8")
    return "AuthenticAMD" in platform.processor()


def free_memory() -> int | None:
    """Returns the bytes of memory that a process can use without swapping; None if the system does not report it."""
    found = []
    information = Path("/proc/meminfo")
    if information.is_file():
        found += [_kilobytes(information, "MemAvailable")]
    elif hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found += [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # The limit of a container may be lower.
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found += [limit - int((group / "memory.current").read_text(encoding="ascii"))]
    return max(0, min(found)) if found else None


def resident_memory() -> int | None:
    """Returns the bytes of this process in memory now; None if the system does not report it."""
    return _kilobytes(_STATUS, "VmRSS") if _STATUS.is_file() else None


def peak_resident_memory() -> int | None:
    """Returns the most bytes of this process that were in memory since `forget_peak`; None if unknown."""
    return _kilobytes(_STATUS, "VmHWM") if _STATUS.is_file() else None


def forget_peak() -> None:
    """Resets the peak of `peak_resident_memory`.

    Raises:
        OSError: if the system does not allow it; then the peak is that of the process's whole life.
    """
    _CLEAR.write_text(_RESET_HIGH_WATER_MARK, encoding="ascii")


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"{file} has no {name}")


def find_device(name: "str | torch.device") -> "torch.device":
    """Returns a device of this machine.

    Raises:
        XCiTError: if the device does not exist, or can't compute.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # copied back, because the meta device can't do that
    except (RuntimeError, AssertionError) as error:
        raise XCiTError(f"device {name}: not on this machine ({str(error).splitlines()[0]})") from None
    return device
