"""Peak memory of a function, in addition to that of the model and its input.

On a GPU it is taken from torch's statistics: the most that was allocated at once during a second run, minus what was
allocated before the first run.

On the CPU it is resident memory as the operating system counts it, measured in a new process for each figure. So it
includes the overhead of allocators and libraries, and nothing that earlier work left. The first run is a warm-up: it
loads code, starts threads and compiles. Then free memory is returned to the system, the system's peak is reset, and
the second run is measured. Tensors that remain after the first run, in a cache for example, are added. This works only
on Linux, because only Linux can reset the peak.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcit.machine import forget_peak, peak_resident_memory, resident_memory

_M_MMAP_THRESHOLD = -3  # from malloc.h of glibc
_OWN_PAGES_FROM = 65536
"""Blocks of at least this many bytes get pages of their own, which are returned to the system when they are freed.

glibc's default threshold moves, and then freed blocks stay resident by chance: repeated measurements of one model gave
54 and 89 MB, while 42 MB were in use.
"""


class MemoryUnknownError(Exception):
    """Raised if the memory could not be measured; the message says why in one line."""


def growth_in_new_process(main: str, request: Mapping[str, Any], *, path: Path | None = None) -> int:
    """Returns the bytes that a function measures in a new process.

    Args:
        main: "module:function". It gets the request and returns a number of bytes, for example from `resident_growth`.
        request: plain values that JSON can represent.
        path: a folder to import the module from, if it is not installed.

    Raises:
        MemoryUnknownError: if the process fails, for example because memory is short.
    """
    module, _, function = main.partition(":")
    code = (
        f"import json, sys; from {module} import {function} as main; "
        "sys.stdout.write(f'\\n{main(json.load(sys.stdin))}\\n')"
    )
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise MemoryUnknownError(
            said[-1] if said else f"its process ended with status {done.returncode}: out of memory?"
        )
    return int(done.stdout.split()[-1])


def resident_growth(work: Callable[[], object]) -> int:
    """Returns the bytes by which this process's resident memory grows in a call, including tensors that remain."""
    allocator = ctypes.CDLL(None)
    glibc = hasattr(allocator, "mallopt")
    if glibc:
        allocator.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM)
    before = _tensor_bytes()
    work()
    kept = _tensor_bytes() - before
    gc.collect()
    if glibc:
        allocator.malloc_trim(0)
    forget_peak()
    resident = resident_memory()
    work()
    peak = peak_resident_memory()
    assert resident is not None and peak is not None  # on Linux both are known
    return peak - resident + kept


def cuda_growth(work: Callable[[], object], allocated_before: int, device: torch.device) -> int:
    """Returns the bytes of GPU memory that a call needs in addition to those allocated before its first run."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - allocated_before


def _tensor_bytes() -> int:
    """Returns the memory of all tensors that Python's garbage collector knows."""
    # `type` instead of `isinstance`, because `isinstance` reads `__class__`, and some objects then print a warning.
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and _has_memory(found)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


def _has_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor on the CPU has its own storage; the parts of a sparse tensor are tensors themselves."""
    return tensor.is_cpu and tensor.layout is torch.strided
