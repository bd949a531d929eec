"""Reads pickled checkpoints without running code in them.

A pickle can contain code. So it is read by torch's restricted unpickler, which only allows tensors and containers. The
few other objects in published checkpoints are replaced by an `_Inert`, which stores nothing and runs nothing.
"""

import pickle
import re
import threading
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xcit.errors import XCiTError

EXPORTED = "an exported file, not a checkpoint: give the weights of the original model"
"""The end of the error message for a model that was exported for another runtime."""


class _Inert:
    """Replaces an unneeded object in a pickle; accepts and ignores all arguments of the original object."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_Stand = Callable[..., Any] | tuple[Callable[..., Any], str]

_INERT_GLOBALS: list[_Stand] = [
    (_Inert, name)
    for name in (
        # The command line that the official code and DINO save as `args`.
        "argparse.Namespace",
        # Paths in Lightning's hyper-parameters.
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        # mmengine's training log; the log's methods were pickled as calls of getattr.
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        # The `meta` dict of OpenMMLab's checkpoints contains NumPy arrays and scalars, pickled by NumPy 1 or NumPy 2.
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
    )
]
_INERT_GLOBALS += [
    # Lightning's dict class for hyper-parameters is replaced by OrderedDict, because torch's unpickler can't fill it.
    (OrderedDict, name)
    for name in (
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    )
]


MOST_TENSORS = 50_000
"""The largest allowed number of tensors in a file.

The largest published detector has about 1,000 tensors, and the checkpoint of its training run has about 4,000 tensors.
"""

_UNPICKLING = threading.Lock()
"""A lock, because torch has one allow-list per process, and two threads must not change it at the same time."""


def read_pickle(path: Path, *, zipped: bool, mapped: bool = True) -> object:
    """Reads a pickled checkpoint and returns its content, with all tensors on the CPU.

    Args:
        path: the file.
        zipped: True for torch's current file format (a zip archive), False for the older format.
        mapped: whether the tensors of a zip archive may be memory-mapped.

    Raises:
        XCiTError: if the file can't be read, is damaged or not a checkpoint, or tries to run code.
    """
    if zipped:
        _check_zip(path)
    try:
        with _UNPICKLING, warnings.catch_warnings(), torch.serialization.safe_globals(_INERT_GLOBALS):
            # The warnings are about pickle protocols and typed storage, which the user of a file can't change.
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # torch would read such a path as a safetensors file
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise XCiTError(f"{path} is damaged or contains more than weights: not loaded, nothing was run") from error
        raise XCiTError(
            f"{path} tries to load {found[1]!r}, which does not belong to weights: not loaded, nothing was run"
        ) from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error
    except Exception as error:  # a file that is not a pickle can cause any exception
        raise XCiTError(f"{path} is damaged or not a PyTorch checkpoint: {brief(error)}") from error


def _check_zip(path: Path) -> None:
    """Checks that a zip archive is complete, undamaged and in torch's format; torch itself verifies no checksums.

    Raises:
        XCiTError: if the archive is incomplete, damaged or in another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.rpartition("/")[2] for entry in entries}
            if "constants.pkl" in names:
                raise XCiTError(f"{path} is a TorchScript program, not a checkpoint: save its state_dict instead")
            if "archive_format" in names:
                raise XCiTError(f"{path} is {EXPORTED}")
            # torch does not compress the entries of its archives, so that they can be memory-mapped.
            if "data.pkl" not in names or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise XCiTError(f"{path} is a zip archive, but not a PyTorch checkpoint")
            # If entries overlapped, the content of the archive could be much larger than the file.
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise XCiTError(f"{path} is damaged: the entries of its archive overlap")
            if len(entries) > MOST_TENSORS:
                raise XCiTError(f"{path} has {len(entries):,} entries, but a checkpoint has at most {MOST_TENSORS:,}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise XCiTError(f"{path} is incomplete or damaged: download it again") from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error
    if damaged is not None:
        raise XCiTError(f"{path} is damaged: the checksum of {damaged!r} does not match; download it again")


def brief(error: BaseException) -> str:
    """Returns the first line of an error message of another package, cut after 120 characters."""
    return shortened(str(error).strip() or type(error).__name__)


def shortened(message: str) -> str:
    """Returns the first line of a message, cut after 120 characters."""
    return message.splitlines()[0][:120]
