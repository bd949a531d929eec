"""Measures the peak memory of a contender on the CPU, in a new process; `xcit.measure.memory` defines peak memory."""

from pathlib import Path
from typing import Any

import torch

from beside_peers.contenders import build
from beside_peers.work import Case
from xcit.config import from_dict, to_dict
from xcit.measure.memory import growth_in_new_process, resident_growth


def peak_memory_in_new_process(contender: str, case: Case, folder: Path) -> float:
    """Returns the peak memory of a contender's run on the CPU, in bytes per image.

    Args:
        contender: the contender's name.
        case: the case to measure.
        folder: folder for ONNX files, as in `build`.

    Raises:
        MemoryUnknownError: if the process fails, for example because there is not enough memory.
    """
    request = {"contender": contender, "case": to_dict(case), "folder": str(folder)}
    here = Path(__file__).parents[1]
    return growth_in_new_process("beside_peers.memory:measure", request, path=here) / case.batch_size


def measure(request: dict[str, Any]) -> int:
    """Returns the peak memory, in bytes, of the run that a request describes."""
    case = from_dict(Case, request["case"])
    torch.set_num_threads(case.threads)
    return resident_growth(build(request["contender"], case, Path(request["folder"]), keeps_memory=False))
