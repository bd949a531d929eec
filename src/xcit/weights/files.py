"""Reads checkpoint files of every published format without running code in them, and writes checkpoint files.

Native tensor names are this package's own names.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcit.errors import XCiTError, some_of
from xcit.weights.dense import PYRAMID, Heads, dense_to_native, detect_head, xcit_of
from xcit.weights.formats import detect_format, to_native
from xcit.weights.pickles import EXPORTED, brief, read_pickle
from xcit.weights.plain import tensor_problem, unstored_bytes
from xcit.weights.wrapping import Found, Normalization, split_key, unwrap
from xcit.writing import whole_file

StoredFormat = Literal["xcit", "official", "timm", "mmpretrain", "dino", "dense"]

_DINO_NETWORKS = ("teacher", "student")
"""Keys of the two networks in a full DINO checkpoint."""

_CLASSIFIER_HEAD = frozenset(("head.weight", "head.fc.weight"))
"""Tensor names of a classifier: every classifier has one of these two, and DINO's projection head has neither."""

_MOST_UNSTORED = 2**30
"""The largest allowed total size, in bytes, of the tensors that are larger than their storage in the file.

A limit is needed because a tensor with strides of 0 can have any size although the file contains only one number.
"""

_SHOWN = 6
"""The largest number of names in an error message; further names are only counted."""


@dataclass(frozen=True)
class StoredWeights:
    """The contents of a checkpoint file with an XCiT.

    Attributes:
        state: maps native names of the XCiT's tensors to tensors on the CPU. The tensors may be memory-mapped from the
            file, so the file must not be changed.
        format: naming format of the tensors in the file. "dino" means official names, possibly with DINO's projection
            head. "dense" means a detector or segmenter.
        metadata: metadata of a safetensors file; empty for other files.
        set_aside: names of tensors that belong neither to the backbone nor to the classifier, without wrapper prefixes
            such as "module.".
        path: path of the file.
        dense: for a detector or segmenter, all its tensors under native names (see `weights/dense.py`); `state` then
            contains only the tensors of its XCiT. Empty for other models.
        head: name of the head of a detector or segmenter; None if the head is unknown, and for other models.
        normalization: mean and standard deviation of the images, if the file contains them, else None. Files of robust
            classifiers often contain them.
    """

    state: dict[str, Tensor]
    format: StoredFormat
    metadata: dict[str, str]
    set_aside: tuple[str, ...]
    path: Path
    dense: dict[str, Tensor] = field(default_factory=dict)
    head: str | None = None
    normalization: Normalization | None = None

    @property
    def whole(self) -> dict[str, Tensor]:
        """All tensors of the model under native names. The digest is computed from these tensors."""
        return self.dense or self.state


def read_checkpoint(path: str | Path, *, key: str | None = None, heads: Heads = MappingProxyType({})) -> StoredWeights:
    """Reads the weights of a model with an XCiT from a file of any format.

    The format is detected from the content of the file, not from its name.

    Args:
        path: the file.
        key: the key of the weights to read if the file contains several sets of weights: for example "student" of a
            DINO checkpoint, "state_dict_ema", or the name of the model in a Lightning module. None means the weights
            that are meant for inference (see `unwrap`). The key may also follow the path: "last.ckpt#state_dict_ema".
        heads: the known heads of detectors and segmenters. If the head in the file is unknown, `head` of the result is
            None.

    Raises:
        XCiTError: if the file is missing, empty, damaged or not a checkpoint, tries to run code, or contains no XCiT.
    """
    path, named = split_key(path)
    key = key or named
    kind = _kind(path)
    metadata: dict[str, str] = {}
    if kind == "safetensors":
        loaded, metadata = _read_safetensors(path)
        found = unwrap(loaded, path, key) if loaded else Found({})
    else:
        found = unwrap(read_pickle(path, zipped=kind == "zip"), path, key)
    _check_tensors(found.tensors, path)
    stored = _sort_out(found.tensors, found.last, metadata, path, heads)
    return replace(stored, set_aside=(*stored.set_aside, *found.beside), normalization=found.normalization)


def digest(state: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256, in hex, of the names, dtypes, shapes and values of all tensors.

    The order of the tensors in `state` has no effect.
    """
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # The tensor is viewed as bytes, because NumPy has no bfloat16. It is flattened first, because a scalar has no
        # last dimension to view as bytes.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_safetensors(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a state dict to a safetensors file, completely or not at all.

    A "digest" is added to the metadata. It is computed under native names, so that it does not depend on the format.

    Args:
        path: the file.
        state: the state dict, with tensor names of any format.
        metadata: the metadata.

    Raises:
        XCiTError: if the file can't be written. An existing file is then unchanged.
    """
    tensors = _standalone(state)
    native = to_native(tensors, detect_format(tensors) or "xcit")
    metadata = {**metadata, "digest": digest(native)}
    with whole_file(path) as part:
        try:
            save_file(tensors, part, metadata=metadata)
        except (
            SafetensorError
        ) as error:  # safetensors raises this error instead of an OSError, for example for a full disk
            raise OSError(brief(error)) from error


def write_pickle(
    path: str | Path, state: Mapping[str, Tensor], wrap: Callable[[dict[str, Tensor]], Mapping[str, object]] = dict
) -> None:
    """Writes a state dict in torch's own file format, completely or not at all.

    Args:
        path: the file.
        state: the state dict.
        wrap: returns the content of the file, for example {"state_dict": state}.

    Raises:
        XCiTError: if the file can't be written. An existing file is then unchanged.
    """
    # The file is first written to memory, because torch reports a full disk as an internal error without the reason.
    buffer = io.BytesIO()
    torch.save(wrap(_standalone(state)), buffer)
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


# Reading: the file type


_NOT_CHECKPOINTS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file it points to: run `git lfs pull`"),
    (b"\x89PNG", "a PNG image, not a checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image, not a checkpoint"),
    (b"GIF8", "a GIF image, not a checkpoint"),
    (b"RIFF", "a RIFF file (WebP image or media), not a checkpoint"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"%PDF", "a PDF document, not a checkpoint"),
    (b"<", "a web page or other markup, not a checkpoint: download the file itself"),
    (b"{", "a JSON or text file, not a checkpoint"),
    (b"[", "a JSON or text file, not a checkpoint"),
)


def _kind(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    """Recognises the file type by the first bytes of the file, and returns it."""
    try:
        if path.exists() and not path.is_file():
            raise XCiTError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, not a checkpoint")
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise XCiTError(f"cannot read {path}: {reason}") from error
    if not start:
        raise XCiTError(f"{path} is empty")
    # A safetensors file starts with the length of its JSON header: eight bytes, little-endian. The last four of these
    # bytes are 0, because the length is at most 100 MB. The header starts with "{".
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    for signature, what in _NOT_CHECKPOINTS:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(signature):
            raise XCiTError(f"{path} is {what}")
    if path.suffix == ".safetensors":
        raise XCiTError(f"{path} is damaged: it has no safetensors header")
    if path.suffix == ".onnx":
        raise XCiTError(f"{path} is {EXPORTED}")
    raise XCiTError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise XCiTError(f"{path} is damaged or not a safetensors file: {brief(error)}") from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error


# Reading: the tensors


def _sort_out(
    tensors: dict[str, Tensor], wrapper: str, metadata: dict[str, str], path: Path, heads: Heads
) -> StoredWeights:
    """Detects the format, sets aside the tensors that belong neither to the backbone nor to the classifier, and renames
    the remaining tensors to native names.

    Args:
        tensors: the tensors by their names in the file.
        wrapper: the last key around the tensors, such as "teacher"; "" if there is none.
        metadata: the metadata of the file.
        path: the file.
        heads: the known heads of detectors and segmenters.
    """
    format = detect_format(tensors)
    stored: StoredFormat | None = format
    kept = tensors
    if format == "mmpretrain":
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith(("backbone.", "head."))}
    elif format is not None and wrapper in _DINO_NETWORKS and not _CLASSIFIER_HEAD & tensors.keys():
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
        stored = "dino"
    elif format == "official" and not wrapper and not any(name.startswith("head.") for name in tensors):
        stored = "dino"
    elif format is None and wrapper not in _DINO_NETWORKS:
        return _sort_out_dense(tensors, metadata, path, heads)
    elif format is None:
        kept = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
        format = detect_format(name.removeprefix("backbone.") for name in kept)
        stored = "dino"
    if format is None or stored is None:
        if tensors and all(name.startswith("head.") for name in tensors) and wrapper in _DINO_NETWORKS:
            raise XCiTError(f"{path} contains DINO's projection head, but not the backbone")
        raise _no_xcit(tensors, path)
    set_aside = tuple(name for name in tensors if name not in kept)
    if format != "mmpretrain":
        kept = {name.removeprefix("backbone."): tensor for name, tensor in kept.items()}
    return StoredWeights(to_native(kept, format), stored, metadata, set_aside, path)


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if problem := tensor_problem(tensor):
            raise XCiTError(f"{path}: {name} is {problem}: not valid weights")
    if (size := unstored_bytes(tensors.values())) > _MOST_UNSTORED:
        raise XCiTError(f"{path}: its tensors claim {size:,} bytes that are not in the file: not valid weights")


def _sort_out_dense(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path, heads: Heads) -> StoredWeights:
    head = detect_head(tensors, heads)
    dense = dense_to_native(tensors, PYRAMID if head is None else heads[head])
    state = xcit_of(dense)
    if detect_format(state) is None:
        raise _no_xcit(tensors, path)
    set_aside = tuple(name for name in tensors if not re.match(r"backbone\.(?!fpn[1-4]\.|pyramid\.)", name))
    return StoredWeights(state, "dense", metadata, set_aside, path, dense, head)


def _no_xcit(tensors: Mapping[str, Tensor], path: Path) -> XCiTError:
    return XCiTError(f"{path} contains no XCiT weights; it contains {some_of(tensors, _SHOWN) or 'no tensors'}")


# Writing


def _standalone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors so that each tensor has its own storage.

    safetensors rejects tensors that share storage, and torch would save the whole storage of a view.
    """
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
