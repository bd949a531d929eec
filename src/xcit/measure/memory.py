"""Peak memory of one run, above what the model and its input take.

On a GPU, torch's own account: the most that was allocated at once in a second run, less what was before the first.

On the CPU, resident memory as the system sees it, in a fresh process for each figure: whatever an allocator or a
library takes counts, and nothing is left from others. The first run is a warm-up (code that is loaded, threads, torch's
compiler); then free memory is handed back to the system, its high-water mark is reset, and the second run moves it.
Tensors that the first run has left, as a cache does, count as the run's. Linux only, for only there the mark can be
reset.
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

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_OWN_PAGES_FROM = 65536
"""Bytes from which a block gets pages of its own, that go back when it is freed. With glibc's own, moving threshold,
freed blocks stay resident by chance: repeated measurements of one model were 54 and 89 MB where 42 MB were live."""


class MemoryUnknownError(Exception):
    """Says in one line why there is no figure."""


def growth_in_new_process(main: str, request: Mapping[str, Any], *, path: Path | None = None) -> int:
    """Bytes that a function measures in a fresh process.

    Args:
        main: "module:function". It gets the request and gives a number of bytes, as `resident_growth` counts them.
        request: plain values, as JSON has them.
        path: a folder to import the module from, where it is not installed.

    Raises:
        MemoryUnknownError: if the process fails, as it does where memory is short.
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
    """Bytes by which resident memory of this process grows while a work is done, its lasting tensors included."""
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
    assert resident is not None and peak is not None  # Linux has them
    return peak - resident + kept


def cuda_growth(work: Callable[[], object], allocated_before: int, device: torch.device) -> int:
    """Bytes of GPU memory that a work takes beyond those that were allocated before its first run."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - allocated_before


def _tensor_bytes() -> int:
    """Memory of all tensors that Python knows."""
    # By type, for `isinstance` asks an object for its class, which some answer with a warning.
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter) and _has_memory(found)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}.values())


def _has_memory(tensor: Tensor) -> bool:
    """Whether it lies in memory of its own: a sparse tensor's parts are tensors themselves."""
    return tensor.is_cpu and tensor.layout is torch.strided
