"""Checks a weights file, for `xcit verify`."""

import os
from dataclasses import dataclass
from pathlib import Path

from xcit.errors import XCiTError
from xcit.weights.download import DownloadProgress
from xcit.weights.files import digest
from xcit.weights.strict import check_state, nonfinite
from xcit.zoo.adapters import is_adapter
from xcit.zoo.kinds import kind_of_config
from xcit.zoo.load import fitting_config, read_source, weights_path
from xcit.zoo.names import find_record, is_file, is_url
from xcit.zoo.shapes import architecture_of
from xcit.zoo.stored import describe, num_parameters, outline, read_weights


@dataclass(frozen=True, kw_only=True)
class VerifiedWeights:
    """A file that passed all checks. `digest` covers its tensors; `recorded` says whether its metadata contain it."""

    path: Path
    format: str
    digest: str
    recorded: bool
    architecture: str
    num_tensors: int
    params: int


def verify(name_or_path: str | os.PathLike[str], *, progress: DownloadProgress | None = None) -> VerifiedWeights:
    """Checks digest, names, shapes and values of a file, or of a model of the zoo, which is downloaded if necessary.

    Raises:
        XCiTError: if a check fails; the message names the first problem.
    """
    record = None if is_file(name_or_path) else find_record(os.fspath(name_or_path))
    if record is not None:
        stored = read_weights(weights_path(record, progress=progress))
    elif is_url(name_or_path) or is_adapter(name_or_path):
        stored = read_source(os.fspath(name_or_path), progress)
    else:
        stored = read_weights(name_or_path)
    path = stored.path
    found, recorded = digest(stored.whole), stored.metadata.get("digest")
    if recorded is not None and recorded != found:
        raise XCiTError(f"{path}: damaged: its tensors have digest {found}, the file says {recorded}")
    config = describe(stored).config if record is None else fitting_config(record, stored)
    # If the head is unknown, only the XCiT can be checked.
    state = stored.state if stored.head is None else stored.dense
    check_state(outline(config), state, str(path))
    if bad := nonfinite(state):
        raise XCiTError(f"{path}: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]}")
    architecture = architecture_of(kind_of_config(config).backbone(config))
    return VerifiedWeights(
        path=path,
        format=stored.format,
        digest=found,
        recorded=recorded is not None,
        architecture=architecture if stored.head is None else f"{stored.head} on {architecture}",
        num_tensors=len(state),
        params=num_parameters(config),
    )
