"""Measures the peak memory of a function, in addition to the memory of the model and its input.

On a GPU, torch's statistics are used: the peak of the allocated memory in a second run, minus the memory that was
allocated before the first run.

On the CPU, the resident memory of a new process is measured. So the figure includes the overhead of allocators and
libraries, but no memory of earlier work. The function runs twice. The first run is a warm-up: it loads code, starts
threads and compiles. Then free memory is returned to the system and the system's peak is reset, and the second run is
measured. Tensors that remain after the first run, for example in a cache, are added to the result. The measurement
needs Linux, because other systems can't reset the peak.
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
"""Smallest size in bytes of the blocks that glibc maps separately. Such blocks are unmapped when they are freed.

glibc's default threshold changes while a program runs, so some freed blocks stay resident by chance. With the
default threshold, repeated measurements of one model gave 54 and 89 MB, although 42 MB were in use.
"""


class MemoryUnknownError(Exception):
    """Raised if the memory can't be measured; the message is one line with the reason."""


def growth_in_new_process(main: str, request: Mapping[str, Any], *, path: Path | None = None) -> int:
    """Runs a measuring function in a new process, and returns its result in bytes.

    Args:
        main: the function as "module:function". It gets the request and returns a number of bytes, for example the
            result of `resident_growth`.
        request: the argument of the function, with values that JSON can represent.
        path: a folder from which the module is imported; None if the module is installed.

    Raises:
        MemoryUnknownError: if the process fails, for example because it runs out of memory.
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
            said[-1]
            if said
            else f"the measuring process ended with status {done.returncode}; it may have run out of memory"
        )
    return int(done.stdout.split()[-1])


def resident_growth(work: Callable[[], object]) -> int:
    """Calls `work` twice, and returns the peak growth of this process's resident memory in the second call, in bytes.

    The size of tensors that remain after the first call is added. This function works only on Linux.
    """
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
    """Calls `work`, and returns the peak of the GPU memory minus `allocated_before`, in bytes.

    Args:
        work: the function, which has already run once.
        allocated_before: bytes that were allocated before its first run.
        device: the GPU.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - allocated_before


def _tensor_bytes() -> int:
    """Returns the bytes of all CPU tensors that Python's garbage collector tracks; shared storage counts once."""
    # `type` is used, because `isinstance` reads `__class__`, and some objects then print a warning.
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and _has_memory(found)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


def _has_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor is on the CPU and dense. A sparse tensor has no storage; its parts are dense tensors."""
    return tensor.is_cpu and tensor.layout is torch.strided
