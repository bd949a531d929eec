"""Identifies the published model in a weights file without metadata, by the file's name or its SHA-256.

The tensors do not determine the strides of the stem and the preprocessing. So a published file is recognised by its
name, or by its SHA-256 if the SHA-256 was published. For any other file, a warning states the assumed model.
"""

import hashlib
import logging
import re
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from xcit.errors import XCiTError
from xcit.weights.files import StoredWeights
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.kinds import kind_of_config, kind_of_weights
from xcit.zoo.names import RECORDS
from xcit.zoo.records import Record
from xcit.zoo.shapes import architecture_of

_LOG = logging.getLogger("xcit")

_SUFFIXES = re.compile(r"(?:\.(?:pth|pt|tar|bin|ckpt|safetensors))+$")


def known_record(stored: StoredWeights) -> Record | None:
    """Returns the record whose published weights are in a file; None if there is no such record.

    The shape of the weights must fit the record too.
    """
    named = _by_file().get(_key(stored.path.name))
    if named is not None and _fits(named, stored):
        return named
    # To compute the SHA-256, the whole file is read. So this is done only if a record of this shape has a SHA-256.
    candidates = [
        (record, source.sha256.lower())
        for record in RECORDS.values()
        for source in record.sources
        if source.sha256 and PurePosixPath(source.filename).suffix == stored.path.suffix and _fits(record, stored)
    ]
    if not candidates:
        return None
    status = stored.path.stat()
    digest = _sha256(stored.path, status.st_size, status.st_mtime_ns)
    return next((record for record, known in candidates if digest.startswith(known)), None)


def say_what_was_assumed(stored: StoredWeights, config: Any) -> None:
    """Logs a warning with the architecture and strides that were assumed for a file without metadata."""
    backbone = kind_of_config(config).backbone(config)
    architecture = architecture_of(backbone)
    _LOG.warning(
        "%s does not state its model: loaded as %s with stem strides %s (patches of %d); if the weights were trained "
        "with other strides, pass stem_strides (--stem-strides)",
        stored.path,
        architecture if architecture in ARCHITECTURES else "the requested model",
        ", ".join(map(str, backbone.strides)),
        backbone.patch_size,
    )


def _fits(record: Record, stored: StoredWeights) -> bool:
    if kind_of_weights(stored) is not record.kind:
        return False
    try:
        found = record.kind.config_from_weights(stored)
    except XCiTError:
        return False
    ours, theirs = record.kind.backbone(found), record.backbone
    fields = ("embed_dim", "depth", "num_heads", "in_channels")
    return (
        all(getattr(ours, name) == getattr(theirs, name) for name in fields)
        and len(ours.strides) == len(theirs.strides)
        and found.num_classes == record.model.num_classes
    )


@cache
def _by_file() -> dict[str, Record]:
    names: dict[str, Record] = {}
    for record in RECORDS.values():
        for source in record.sources:
            # Many files on the Hub have the same file name, so the name of the repository is used.
            published = source.location if source.kind == "huggingface" else source.filename
            names.setdefault(_key(PurePosixPath(published).name), record)
        names.setdefault(_key(record.name), record)
    return names


def _key(filename: str) -> str:
    """Normalises a file's name, so that it can be compared with published names.

    Removes suffixes, and parts that a browser or a cache has added, such as " (1)". Replaces "-" by "_".
    """
    stem = _SUFFIXES.sub("", filename.lower())
    return re.sub(r"^[0-9a-f]{8}-|[ _]?\(\d+\)$", "", stem).replace("-", "_")


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Returns the SHA-256 of a file in hex.

    The result is cached, because loading a file needs the SHA-256 several times. `size` and `modified` are part of the
    cache's key, so that the SHA-256 is computed again if the file has changed.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
