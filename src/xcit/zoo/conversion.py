"""Writes a checkpoint in another format, without changing its values, or as a folder for the Hugging Face Hub."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from xcit.errors import XCiTError
from xcit.weights.dense import dense_from_native
from xcit.weights.files import StoredWeights, write_pickle, write_safetensors
from xcit.weights.formats import FORMATS, Format, from_native
from xcit.zoo.adapters import is_adapter
from xcit.zoo.kinds import KINDS
from xcit.zoo.load import read_source
from xcit.zoo.names import is_url
from xcit.zoo.origin import known_record
from xcit.zoo.sharing import share_stored
from xcit.zoo.statement import METADATA_KEY, model_metadata
from xcit.zoo.stored import read_weights

FOLDER = "timm-hub"
"""The format for the Hub: a folder (see `write_folder`), which timm can read if timm has such a model."""

_PICKLED = (".pth", ".pt", ".bin")


def _openmmlab(state: dict[str, Tensor]) -> dict[str, object]:
    return {"state_dict": state, "meta": {}}


_WRAP: dict[str, Callable[[dict[str, Tensor]], dict[str, object]]] = {
    "xcit": dict,
    "official": lambda state: {"model": state},
    "timm": dict,
    "mmpretrain": _openmmlab,
    "dino": dict,
}
"""Maps each format to a function, which wraps a state dict in the keys that are usual in pickled files of the format.

Whole detectors and segmenters use the keys of OpenMMLab.
"""


def targets() -> tuple[str, ...]:
    """Returns the formats that can be written.

    "dino" is the format of the published DINO backbones: official tensor names, no classifier, no keys around the state
    dict. "mmseg" is for whole segmenters, and "mmdet" for whole detectors. "xcit" and "timm-hub" are for all models. In
    every other format, only the XCiT of a segmenter or detector is written. "timm-hub" writes a folder (see
    `write_folder`); all other formats write a file.
    """
    return (*FORMATS, "dino", *(kind.published_format for kind in KINDS.values() if kind.published_format), FOLDER)


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    key: str | None = None,
    overwrite: bool = False,
    licence: str = "",
    report: str | Path | None = None,
) -> StoredWeights:
    """Reads a checkpoint in any format and writes it in another format. The source is never overwritten.

    Args:
        source: the checkpoint: a file, the folder of a model, the folder of an adapter (which is merged into its base
            model), or a repository of the Hub ("hf-hub:USER/REPO").
        destination: the new file. Its suffix decides the file type: .safetensors, or torch's own .pth, .pt or .bin,
            which can't contain metadata. For "timm-hub", it is a new folder.
        to: format of the new file, one of `targets()`.
        key: the key of the weights to read if the file contains several sets of weights, see `read_checkpoint`.
        overwrite: whether to replace the destination if it exists.
        licence: for "timm-hub" only: licence of the weights; "" means the published licence if the weights were
            published.
        report: for "timm-hub" only: a report.json of `xcit test`; its figures are written to the model card.

    Returns:
        The weights that were read. Their `set_aside` contains the names of tensors that are not in the new file.

    Raises:
        XCiTError: if the source can't be read, the format can't contain the model, the destination can't be written, or
            the destination exists and `overwrite` is False.
    """
    # A URL and an adapter's folder are not files, so the destination can't be the source.
    is_file, destination = not (is_url(str(source)) or is_adapter(source)), Path(destination)
    if to not in targets():
        raise XCiTError(f"unknown format {to!r}: choose one of {', '.join(targets())}")
    if to != FOLDER and (licence or report):
        raise XCiTError(f"a licence and a report are only for the model card of --to {FOLDER}, not for {to}")
    if to != FOLDER and destination.suffix not in (".safetensors", *_PICKLED):
        raise XCiTError(f"{destination} must end in .safetensors or one of {', '.join(_PICKLED)}")
    stored = read_weights(source, key=key) if is_file else read_source(f"{source}#{key}" if key else str(source), None)
    if to == FOLDER:
        return share_stored(
            stored, destination, licence=licence, report=None if report is None else Path(report), overwrite=overwrite
        )
    if to == "dino" and any(name.startswith("head.") for name in stored.state):
        raise XCiTError(f"{source} has a classifier, but DINO's format contains none: choose another format")
    if destination.exists():
        if is_file and destination.samefile(source):
            raise XCiTError(f"{destination} is the source file: choose another destination")
        if not overwrite:
            raise XCiTError(f"{destination} already exists: choose another destination, or set overwrite")
    kind = next((kind for kind in KINDS.values() if to and kind.published_format == to), None)
    if kind is not None:
        if stored.head is None or stored.head not in kind.heads:
            raise XCiTError(f"{source} is no {kind.name}, but {to} is a format for {kind.name}s: choose another format")
        state = dense_from_native(stored.dense, kind.heads[stored.head])
    elif to == "xcit" and stored.head is not None:
        state = stored.dense
    else:
        state = from_native(stored.state, "official" if to == "dino" else cast(Format, to))
    if destination.suffix == ".safetensors":
        write_safetensors(destination, state, _metadata(stored, is_whole=len(state) == len(stored.whole)))
    else:
        write_pickle(destination, state, _WRAP.get(to, _openmmlab))
    return replace(stored, set_aside=()) if len(state) == len(stored.dense) else stored


def _metadata(stored: StoredWeights, *, is_whole: bool) -> dict[str, str]:
    """Returns the metadata for the new file.

    A published file without this package's metadata may be recognised by its name. The new file has another name, so a
    description of the model is added to its metadata.
    """
    record = known_record(stored) if is_whole and METADATA_KEY not in stored.metadata else None
    return stored.metadata if record is None else stored.metadata | model_metadata(record.model, record.info())
