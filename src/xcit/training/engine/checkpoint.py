"""Writes and reads a run's checkpoints. A file is written completely or not at all, and reading it runs no code."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from xcit.errors import XCiTError
from xcit.regular import regular
from xcit.weights.pickles import read_pickle
from xcit.writing import whole_file

LAST, BEST = "last.pt", "best.pt"
"""File names in a run's folder: the latest checkpoint, and the checkpoint with the best evaluation result."""


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes a state of tensors and plain values. After a crash or on a full disk, the previous file is unchanged.

    Raises:
        XCiTError: if the file can't be written.
    """
    try:
        with whole_file(path) as part, part.open("wb") as file:
            torch.save(state, file)
    except (XCiTError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = error if isinstance(error, XCiTError) else f"{path}: can't be written: {error}"
        raise XCiTError(f"{reason}; the previous checkpoint is kept") from error


def keep_checkpoint(path: Path, name: str) -> None:
    """Stores a checkpoint under a second file name in the same folder.

    The second file is a hard link. If the file system does not support hard links, it is a copy.

    Raises:
        XCiTError: if the file can't be written.
    """
    with whole_file(path.with_name(name)) as part:
        part.unlink()
        try:
            os.link(path, part)
        except OSError:  # the file system has no hard links
            shutil.copyfile(path, part)


def keep_latest(path: Path, num_steps_done: int, num_kept: int) -> None:
    """Stores a checkpoint as `step-<finished steps>.pt`, and deletes all such files except the latest `num_kept`."""
    keep_checkpoint(path, f"step-{num_steps_done:08d}.pt")
    for old in sorted(path.parent.glob("step-*.pt"))[:-num_kept]:
        old.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a file that `save_checkpoint` wrote, and returns the state with its tensors on the CPU.

    Raises:
        XCiTError: if the file is missing or damaged, or contains anything other than tensors and plain values.
    """
    try:
        with regular(path).open("rb") as file:
            is_zip = file.read(2) == b"PK"
        # The file must not be memory-mapped, because the run writes its next checkpoint to the same path.
        state = read_pickle(path, zipped=is_zip, mapped=False)
    except FileNotFoundError:
        raise XCiTError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise XCiTError(f"{path}: can't be read: {error.strerror or error}") from None
    except XCiTError as error:
        reason = str(error).removeprefix(f"{path} ")
        raise XCiTError(
            f"{path}: not a checkpoint of a run, or damaged; no code from the file was executed ({reason})"
        ) from error
    if not isinstance(state, dict) or "optimizer" not in state:
        raise XCiTError(f"{path}: not a checkpoint of a run")
    return state
