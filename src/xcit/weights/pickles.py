"""Reads pickles without running the code in them.

A pickle is a program. So it is read by torch's restricted unpickler, which only knows tensors and containers. The few
other objects in published checkpoints are replaced by an `_Inert`, which stores nothing and runs nothing.
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

EXPORTED = "an exported file, not a checkpoint: give the weights that it was made from"
"""The end of the message that refuses a model that was exported for another runtime."""


class _Inert:
    """Replaces an object of a pickle that is not loaded: it accepts every call that would build it, and ignores it."""

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
        # mmengine's training log, whose methods were pickled by name through getattr.
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",
        # NumPy arrays and numbers in `meta`, of NumPy 1 and 2.
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
    )
]
_INERT_GLOBALS += [
    # The dictionary of Lightning's hyper-parameters becomes a plain one, because torch fills no other kind of object.
    (OrderedDict, name)
    for name in (
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
    )
]


MOST_TENSORS = 50_000
"""The most tensors in a file; the largest published detector has about 1,000, and the checkpoint of its run 4,000."""

_UNPICKLING = threading.Lock()
"""torch has one allow-list per process, so two threads must not change it at the same time."""


def read_pickle(path: Path, *, zipped: bool, mapped: bool = True) -> object:
    """Returns the contents of a pickle, with its tensors on the CPU.

    Args:
        path: the file.
        zipped: whether the file has torch's current (zip) format, or the older one.
        mapped: whether tensors of a zipped file may be memory-mapped.

    Raises:
        XCiTError: if the file can't be read, is damaged or not a checkpoint, or tries to run code.
    """
    if zipped:
        _check_zip(path)
    try:
        with _UNPICKLING, warnings.catch_warnings(), torch.serialization.safe_globals(_INERT_GLOBALS):
            # The warnings are about pickle protocols and typed storage, which the reader of a file can't change.
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":  # torch would decide by the file name, which is wrong here
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise XCiTError(f"{path} is damaged or holds more than weights: refused, nothing was run") from error
        raise XCiTError(
            f"{path} tries to load {found[1]!r}, which does not belong to weights: refused, it was not run"
        ) from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error
    except Exception as error:  # bytes that are not a pickle can cause any exception
        raise XCiTError(f"{path} is damaged or no PyTorch checkpoint: {brief(error)}") from error


def _check_zip(path: Path) -> None:
    """Checks that an archive is complete, undamaged and in torch's format; torch itself does not verify checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = {entry.filename.rpartition("/")[2] for entry in entries}
            if "constants.pkl" in names:
                raise XCiTError(f"{path} is a TorchScript program, not a checkpoint: save its state_dict instead")
            if "archive_format" in names:
                raise XCiTError(f"{path} is {EXPORTED}")
            # torch stores entries uncompressed, and a mapped file is used as it is on the disk.
            if "data.pkl" not in names or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise XCiTError(f"{path} is a zip archive, but no PyTorch checkpoint")
            # Entries that share their bytes could expand a small file to any size.
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise XCiTError(f"{path} is damaged: the entries of its archive overlap")
            if len(entries) > MOST_TENSORS:
                raise XCiTError(f"{path} has {len(entries):,} entries, a checkpoint at most {MOST_TENSORS:,}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise XCiTError(f"{path} is cut off or damaged: fetch it again") from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error
    if damaged is not None:
        raise XCiTError(f"{path} is damaged: the checksum of {damaged!r} does not match; fetch it again")


def brief(error: BaseException) -> str:
    """Returns the first line of another package's error message, at most 120 characters."""
    return shortened(str(error).strip() or type(error).__name__)


def shortened(message: str) -> str:
    """Returns the first line of a message, at most 120 characters."""
    return message.splitlines()[0][:120]
