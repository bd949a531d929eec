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
    """Returns the processor's model name, as the operating system reports it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_amd() -> bool:
    """Returns whether the processor is made by AMD; false if the system does not report it."""
    with contextlib.suppress(OSError, UnicodeError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "AuthenticAMD" in platform.processor()


def free_memory() -> int | None:
    """Returns the number of bytes that a process can use without swapping; None if the system does not report it.

    On a system without `/proc/meminfo`, the total memory is used instead of the free memory.
    """
    found = []
    information = Path("/proc/meminfo")
    if information.is_file():
        found += [_kilobytes(information, "MemAvailable")]
    elif hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found += [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # A container may have a lower limit.
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found += [limit - int((group / "memory.current").read_text(encoding="ascii"))]
    return max(0, min(found)) if found else None


def resident_memory() -> int | None:
    """Returns the resident memory of this process in bytes; None if the system does not report it."""
    return _kilobytes(_STATUS, "VmRSS") if _STATUS.is_file() else None


def peak_resident_memory() -> int | None:
    """Returns the peak of this process's resident memory in bytes; None if the system does not report it.

    The peak counts from the last call of `forget_peak`, or from the start of the process.
    """
    return _kilobytes(_STATUS, "VmHWM") if _STATUS.is_file() else None


def forget_peak() -> None:
    """Resets the peak of `peak_resident_memory`.

    Raises:
        OSError: if the system does not allow a reset.
    """
    _CLEAR.write_text(_RESET_HIGH_WATER_MARK, encoding="ascii")


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"{file} has no {name}")


def find_device(name: "str | torch.device") -> "torch.device":
    """Returns the torch device with this name, after a test that this machine can compute on it.

    Raises:
        XCiTError: if this machine does not have the device, or can't compute on the device.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the copy to the CPU fails for the meta device
    except (RuntimeError, AssertionError) as error:
        raise XCiTError(f"device {name}: not on this machine ({str(error).splitlines()[0]})") from None
    return device
