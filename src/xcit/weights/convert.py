"""Rewrites a checkpoint in another format, bit for bit."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.files import StoredWeights, read_checkpoint, write_pickle, write_safetensors
from xcit.weights.formats import FORMATS, Format, from_native

_PICKLED = (".pth", ".pt", ".bin")

_WRAP: dict[Format, Callable[[dict[str, Tensor]], dict[str, object]]] = {
    "xcit": dict,
    "official": lambda state: {"model": state},
    "timm": dict,
    "mmpretrain": lambda state: {"state_dict": state, "meta": {}},
}
"""How each format's own pickles hold the state."""


def convert(source: str | Path, destination: str | Path, to: Format, *, overwrite: bool = False) -> StoredWeights:
    """Reads a checkpoint of any format and writes it in format `to`.

    The destination's suffix chooses the file type: .safetensors, or .pth, .pt, .bin for torch's own, which has no
    place for the metadata of a safetensors file.

    Returns:
        What was read. Its `set_aside` names the tensors that the new file has not.

    Raises:
        XCiTError: if the source cannot be read or the destination not written, or exists and `overwrite` is not set.
            The source itself is never overwritten.
    """
    source, destination = Path(source), Path(destination)
    if to not in FORMATS:
        raise XCiTError(f"unknown format {to!r}: choose one of {', '.join(FORMATS)}")
    if destination.suffix not in (".safetensors", *_PICKLED):
        raise XCiTError(f"{destination} must end in .safetensors or one of {', '.join(_PICKLED)}")
    stored = read_checkpoint(source)
    if destination.exists():
        if destination.samefile(source):
            raise XCiTError(f"{destination} is the file to convert itself: choose another destination")
        if not overwrite:
            raise XCiTError(f"{destination} exists: choose another destination, or ask to overwrite it")
    state = from_native(stored.state, to)
    if destination.suffix == ".safetensors":
        write_safetensors(destination, state, stored.metadata)
    else:
        write_pickle(destination, state, _WRAP[to])
    return stored
