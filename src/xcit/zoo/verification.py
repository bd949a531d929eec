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
    """A weights file that passed all checks.

    Attributes:
        path: path of the file.
        format: naming format of its tensors.
        digest: SHA-256 of its tensors in hex.
        recorded: whether the file's metadata contain this digest.
        architecture: name of its architecture, with the head of a segmenter or detector.
        num_tensors: number of checked tensors.
        params: number of the model's learned parameters.
    """

    path: Path
    format: str
    digest: str
    recorded: bool
    architecture: str
    num_tensors: int
    params: int


def verify(name_or_path: str | os.PathLike[str], *, progress: DownloadProgress | None = None) -> VerifiedWeights:
    """Checks the digest, tensor names, shapes and values of a weights file or a published model.

    The file of a published model is downloaded if it is not yet on this machine.

    Args:
        name_or_path: a published name, or the path or URL of a file.
        progress: called during a download.

    Raises:
        XCiTError: if a check fails; the message states the first problem.
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
        raise XCiTError(f"{path}: damaged: its tensors have digest {found}, but the file states {recorded}")
    config = describe(stored).config if record is None else fitting_config(record, stored)
    # If the head is unknown, only the XCiT can be checked.
    state = stored.state if stored.head is None else stored.dense
    check_state(outline(config), state, str(path))
    if bad := nonfinite(state):
        raise XCiTError(f"{path}: {len(bad)} tensors contain NaN or infinity, the first is {bad[0]}")
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
