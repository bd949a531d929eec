"""This machine: what it is called, for figures that depend on it, and where it computes."""

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from xcit.errors import XCiTError

if TYPE_CHECKING:
    import torch


def processor() -> str:
    """The processor's model, as the system names it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
