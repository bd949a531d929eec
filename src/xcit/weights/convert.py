"""Rewrites a checkpoint in another format, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.dense import DenseKind, dense_from_native
from xcit.weights.files import StoredWeights, read_checkpoint, write_pickle, write_safetensors
from xcit.weights.formats import from_native

Target = Literal["xcit", "official", "timm", "mmpretrain", "dino", "mmseg", "mmdet"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""Formats that can be written.

"dino" is a published DINO backbone: official names, no classifier, no wrapper. "mmseg" is a published segmenter,
"mmdet" a published detector; "xcit" too keeps these whole, all others take the XCiT out of them.
"""

_PICKLED = (".pth", ".pt", ".bin")

_DENSE: dict[Target, tuple[str, tuple[DenseKind, ...]]] = {
    "mmseg": ("segmenter", ("upernet", "sem-fpn")),
    "mmdet": ("detector", ("mask-rcnn",)),
}
"""Formats of whole dense models: what such a model is called, and its kinds."""

_WRAP: dict[Target, Callable[[dict[str, Tensor]], dict[str, object]]] = {
    "xcit": dict,
    "official": lambda state: {"model": state},
    "timm": dict,
    "mmpretrain": lambda state: {"state_dict": state, "meta": {}},
    "dino": dict,
    "mmseg": lambda state: {"state_dict": state, "meta": {}},
    "mmdet": lambda state: {"state_dict": state, "meta": {}},
}
"""How each format's own pickles hold the state."""


def convert(
    source: str | Path, destination: str | Path, to: Target, *, key: str | None = None, overwrite: bool = False
) -> StoredWeights:
    """Reads a checkpoint of any format and writes it in another.

    Args:
        source: the checkpoint.
        destination: the new file. Its suffix chooses the file type: .safetensors, or .pth, .pt, .bin for torch's own,
            which has no place for the metadata of a safetensors file.
        to: the new file's format, one of `TARGETS`.
        key: which of several sets of weights in one file to take, see `read_checkpoint`.
        overwrite: replace the destination if it exists.

    Returns:
        What was read. Its `set_aside` names the tensors that the new file has not.

    Raises:
        XCiTError: if the source cannot be read, is not what the format holds, or the destination cannot be written, or
            exists and `overwrite` is not set. The source itself is never overwritten.
    """
    source, destination = Path(source), Path(destination)
    if to not in TARGETS:
        raise XCiTError(f"unknown format {to!r}: choose one of {', '.join(TARGETS)}")
    if destination.suffix not in (".safetensors", *_PICKLED):
        raise XCiTError(f"{destination} must end in .safetensors or one of {', '.join(_PICKLED)}")
    stored = read_checkpoint(source, key=key)
    if to == "dino" and any(name.startswith("head.") for name in stored.state):
        raise XCiTError(f"{source} has a classifier, for which DINO's format has no place: choose another format")
    if destination.exists():
        if destination.samefile(source):
            raise XCiTError(f"{destination} is the file to convert itself: choose another destination")
        if not overwrite:
            raise XCiTError(f"{destination} exists: choose another destination, or ask to overwrite it")
    if to == "mmseg" or to == "mmdet":
        what, kinds = _DENSE[to]
        if stored.dense_kind not in kinds:
            raise XCiTError(f"{source} is no {what}, which {to} is the format of: choose another format")
        state = dense_from_native(stored.dense, stored.dense_kind)
    elif to == "xcit" and stored.dense_kind is not None:
        state = stored.dense
    else:
        state = from_native(stored.state, "official" if to == "dino" else to)
    if destination.suffix == ".safetensors":
        write_safetensors(destination, state, stored.metadata)
    else:
        write_pickle(destination, state, _WRAP[to])
    return replace(stored, set_aside=()) if len(state) == len(stored.dense) else stored
