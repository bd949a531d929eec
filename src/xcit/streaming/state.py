"""Stores the state of a run with scratch files, so that a run that was killed can be resumed.

Each run has its own folder. The name of the folder depends on the model, the image and the requested outputs. The
folder contains two files of tokens and the file `state.json`. After each pass except the last, `state.json` is written
when the tokens of the pass have been written. The file is replaced completely or not at all.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.stripes import Sums

VERSION = 1
"""Version of the format of a run's folder. A run of another version can't be resumed."""


@dataclass
class State:
    """The progress of a run.

    Attributes:
        passes: number of finished passes, including the pass that embeds the image.
        current: index (0 or 1) of the file that contains the tokens.
        checksum: checksum of the tokens in this file (see `ScratchTokens`).
        sums: the sums over all tokens, which the next XCA block needs; None if no XCA block follows.
        cls: the class token (D,); None before class attention.
        class_tokens: class tokens (D,) collected so far, by block.
        means: means (D,) collected so far, by block.
    """

    passes: int = 0
    current: int = 0
    checksum: int = 0
    sums: Sums | None = None
    cls: Tensor | None = None
    class_tokens: dict[int, Tensor] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the state to a file, completely or not at all.

        Raises:
            XCiTError: if the file can't be written.
        """
        found: dict[str, Any] = {"version": VERSION, "passes": self.passes, "current": self.current}
        found |= {"checksum": self.checksum, "cls": None if self.cls is None else _pack(self.cls), "sums": None}
        if self.sums is not None:
            found["sums"] = [_pack(self.sums.gram), _pack(self.sums.total), self.sums.count]
        for name, tensors in (("class_tokens", self.class_tokens), ("means", self.means)):
            found[name] = {str(block): _pack(tensor) for block, tensor in tensors.items()}
        write_state(path, found)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "State | None":
        """Reads the state that an earlier run has saved; returns None if the file is missing or can't be used."""
        try:
            found = json.loads(path.read_text(encoding="ascii"))
            if found["version"] != VERSION:
                return None
            sums = found["sums"]
            return cls(
                passes=found["passes"],
                current=found["current"],
                checksum=found["checksum"],
                sums=sums and Sums(_unpack(sums[0], device), _unpack(sums[1], device), sums[2]),
                cls=found["cls"] and _unpack(found["cls"], device),
                class_tokens={int(block): _unpack(one, device) for block, one in found["class_tokens"].items()},
                means={int(block): _unpack(one, device) for block, one in found["means"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


class RunFolder:
    """The folder of one run. It is locked, so that no other run can use it at the same time.

    Args:
        scratch: the folder in which the run's folder is created.
        key: text that identifies the run. The name of the run's folder is computed from it.
        num_bytes: number of bytes that the run needs on the disk.

    Raises:
        XCiTError: if the folder can't be created, the disk has too little space, or another run uses the folder.
    """

    def __init__(self, scratch: Path, key: str, num_bytes: int) -> None:
        self.path = scratch / hashlib.sha256(key.encode()).hexdigest()[:24]
        self.tokens = (self.path / "tokens-0.bin", self.path / "tokens-1.bin")
        self.state = self.path / "state.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise XCiTError(f"{self.path}: can't be made: {error.strerror}") from None
        self._lock = FileLock(self.path / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise XCiTError(f"{self.path}: another run of the same image and model is using this folder") from None
        there = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        free = shutil.disk_usage(self.path).free + there
        if free < num_bytes:
            self.leave(keep=self.state.exists())
            raise XCiTError(
                f"{scratch}: {num_bytes / 1e9:.2f} GB of scratch files are needed, {free / 1e9:.2f} GB are free: give "
                "another scratch folder, or more memory"
            )

    def leave(self, *, keep: bool) -> None:
        """Unlocks the folder. Removes it if `keep` is false."""
        self._lock.release()
        if not keep:
            shutil.rmtree(self.path, ignore_errors=True)


def write_state(path: Path, found: Mapping[str, Any]) -> None:
    """Writes the state of a run to a JSON file, completely or not at all.

    Raises:
        XCiTError: if the file can't be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(found), encoding="ascii")
        part.replace(path)
    except OSError as error:
        raise XCiTError(f"{path}: can't be written: {error.strerror}") from None


def model_digest(model: nn.Module) -> str:
    """Returns a digest of all parameters and buffers of a model: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def empty_file(path: Path) -> None:
    """Truncates a file to 0 bytes if it exists, to free space on the disk."""
    if path.exists():
        os.truncate(path, 0)


def _pack(tensor: Tensor) -> list[Any]:
    array = tensor.detach().cpu().double().numpy()
    return [list(array.shape), base64.b64encode(array.astype("<f8").tobytes()).decode("ascii")]


def _unpack(packed: list[Any], device: torch.device) -> Tensor:
    shape, text = packed
    array = np.frombuffer(base64.b64decode(text), "<f8").reshape(shape)
    tensor = torch.from_numpy(array.astype(np.float64))
    return tensor.float().to(device) if device.type == "mps" else tensor.to(device)
