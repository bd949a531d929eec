"""Checkpoint files: reads every published kind without running what is in it, and writes without half-written files."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.dense import PYRAMID, Heads, dense_to_native, detect_head, xcit_of
from xcit.weights.formats import detect_format, to_native
from xcit.weights.pickles import brief, read_pickle
from xcit.weights.plain import tensor_problem, unstored_bytes
from xcit.weights.wrapping import Found, Normalization, split_key, unwrap
from xcit.writing import whole_file

StoredFormat = Literal["xcit", "official", "timm", "mmpretrain", "dino", "dense"]

_DINO_NETWORKS = ("teacher", "student")
"""Keys of the two networks in a full DINO checkpoint."""

_CLASSIFIER_HEAD = frozenset(("head.weight", "head.fc.weight"))
"""A classifier that someone keeps under the name of a teacher has one of these; DINO's projection head has none."""

_MOST_UNSTORED = 2**30
"""Bytes that tensors may claim beyond what a file holds: one number, repeated, can be a tensor of any size."""

_SHOWN = 6
"""Names that an error shows before it says how many more there are."""


@dataclass(frozen=True)
class StoredWeights:
    """What a checkpoint file holds of an XCiT.

    Attributes:
        state: native name -> tensor on the CPU; it may still be mapped from the file, so leave that file as it is.
        format: how the file names them. "dino" and "dense" are official names with other things around them: DINO's
            projection head; the neck and heads of a detector or segmenter.
        metadata: of a safetensors file, else empty.
        set_aside: names, as in the file, of tensors that are neither backbone nor classifier.
        path: the file.
        dense: all of a detector or segmenter by its native names (see `weights/dense.py`), `state` being its XCiT;
            empty for all else.
        head: the name of the detector's or segmenter's head; none where it is unknown, or there is none.
        normalization: what the file itself does to images before the model, as robust classifiers are often stored.
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
        """All tensors that have a native name: what the file's digest is over."""
        return self.dense or self.state


def read_checkpoint(path: str | Path, *, key: str | None = None, heads: Heads = MappingProxyType({})) -> StoredWeights:
    """Reads the weights of an XCiT from a file of any format; what the file is decides, not what it is called.

    Args:
        path: the file.
        key: what the weights that are wanted lie under, such as "student" in a full DINO checkpoint, "state_dict_ema",
            or the name of a Lightning module's model; none takes those that are meant to be used, see `unwrap`. It may
            stand after the path instead: "last.ckpt#state_dict_ema".
        heads: of detectors and segmenters, to know one by; of any other the XCiT alone is found.

    Raises:
        XCiTError: if the file is missing, empty, damaged or no checkpoint, asks to run code, or holds no XCiT.
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
    """SHA-256, in hex, of all names, dtypes, shapes and bits; the order of the names does not matter."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Bytes, because NumPy knows no bfloat16; flat, because a scalar has no last dimension to view as bytes.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_safetensors(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a state in any format, whole or not at all.

    The metadata gets a "digest": that of the state under its native names, so it is the same in every format.

    Raises:
        XCiTError: if the file cannot be written; what was there before is untouched.
    """
    tensors = _standalone(state)
    native = to_native(tensors, detect_format(tensors) or "xcit")
    metadata = {**metadata, "digest": digest(native)}
    with whole_file(path) as part:
        try:
            save_file(tensors, part, metadata=metadata)
        except SafetensorError as error:  # its own name for what the disk says
            raise OSError(brief(error)) from error


def write_pickle(
    path: str | Path, state: Mapping[str, Tensor], wrap: Callable[[dict[str, Tensor]], Mapping[str, object]] = dict
) -> None:
    """Writes a state in torch's own file format, whole or not at all: flat, or as `wrap` puts it.

    Raises:
        XCiTError: if the file cannot be written; what was there before is untouched.
    """
    # Through memory: torch reports a full disk as an internal error, without the reason.
    buffer = io.BytesIO()
    torch.save(wrap(_standalone(state)), buffer)
    with whole_file(path) as part:
        part.write_bytes(buffer.getbuffer())


# Reading: what kind of file


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
    """Tells by its first bytes how a file is to be read."""
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
    # A safetensors file starts with the length of its JSON header in eight bytes, little-endian, at most 100 MB.
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
    raise XCiTError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise XCiTError(f"{path} is damaged or no safetensors file: {brief(error)}") from error
    except OSError as error:
        raise XCiTError(f"cannot read {path}: {error.strerror or brief(error)}") from error


# Reading: which tensors


def _sort_out(
    tensors: dict[str, Tensor], wrapper: str, metadata: dict[str, str], path: Path, heads: Heads
) -> StoredWeights:
    """Finds the format, sets aside what is neither backbone nor classifier, and renames the rest."""
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
            raise XCiTError(f"{path} holds DINO's projection head without the backbone: there is no XCiT in it")
        raise _no_xcit(tensors, path)
    set_aside = tuple(name for name in tensors if name not in kept)
    if format != "mmpretrain":
        kept = {name.removeprefix("backbone."): tensor for name, tensor in kept.items()}
    return StoredWeights(to_native(kept, format), stored, metadata, set_aside, path)


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if problem := tensor_problem(tensor):
            raise XCiTError(f"{path}: {name} is {problem}: no weights")
    if (size := unstored_bytes(tensors.values())) > _MOST_UNSTORED:
        raise XCiTError(f"{path}: its tensors claim {size:,} bytes that are not in the file: no weights")


def _sort_out_dense(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path, heads: Heads) -> StoredWeights:
    head = detect_head(tensors, heads)
    dense = dense_to_native(tensors, PYRAMID if head is None else heads[head])
    state = xcit_of(dense)
    if detect_format(state) is None:
        raise _no_xcit(tensors, path)
    set_aside = tuple(name for name in tensors if not re.match(r"backbone\.(?!fpn[1-4]\.|pyramid\.)", name))
    return StoredWeights(state, "dense", metadata, set_aside, path, dense, head)


def _no_xcit(tensors: Mapping[str, Tensor], path: Path) -> XCiTError:
    return XCiTError(f"{path} holds no XCiT weights; it has {_some(tensors) or 'no tensors'}")


# Writing


def _standalone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that own their memory: safetensors refuses views, and torch would write all that they are a view of."""
    return {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


# Messages


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
