"""Implements the methods `save_pretrained`, `from_pretrained` and `push_to_hub` of models."""

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.fused import is_fused
from xcit.weights.files import StoredWeights
from xcit.weights.hub import PREFIX, hub_endpoint, offline_switch
from xcit.zoo.folders import Shared, write_folder
from xcit.zoo.load import read_source
from xcit.zoo.model_card import Figure, measured_figures, model_card, published_figures
from xcit.zoo.names import is_file
from xcit.zoo.origin import known_record
from xcit.zoo.stored import describe, load_stored


def share_stored(
    stored: StoredWeights, folder: Path, *, licence: str = "", report: Path | None = None, overwrite: bool = False
) -> StoredWeights:
    """Writes the weights of a file as a model's folder (see `write_folder`).

    For published weights, the folder also contains their published figures and sources.

    Args:
        stored: the weights, of any kind of model and in any format.
        folder: a new or empty folder; with `overwrite`, any folder.
        licence: licence of the weights; "" means the published licence if the weights were published.
        report: a report.json of `xcit test`; its figures are written to the model card.
        overwrite: whether to replace the files of a model that are already in the folder.

    Returns:
        `stored`. For a segmenter or detector, its `set_aside` is empty, because the folder contains all its tensors.

    Raises:
        XCiTError: if the head of a segmenter or detector is unknown, or the folder can't be written.
    """
    stated = describe(stored)
    if stored.dense and stored.head is None:
        raise XCiTError(f"{stored.path}: its head is unknown, so it can't be written as a model's folder")
    record = known_record(stored)
    shared = Shared(config=stated.config, info=stated.info, licence=licence)
    figures = [] if report is None else measured_figures(report)
    if record is not None:
        shared = replace(
            shared,
            licence=licence or record.licence.replace("not stated", ""),
            sources=[{key: value for key, value in asdict(source).items() if value} for source in record.sources],
        )
        figures = [*published_figures(record), *figures]
    _write(folder, stored.whole, shared, figures, overwrite)
    return replace(stored, set_aside=()) if stored.dense else stored


def save_pretrained(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    licence: str = "",
    report: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model as a folder, and returns its path; see `xcit.XCiT.save_pretrained`."""
    if is_fused(model):
        raise XCiTError("a fused model can't be saved: save the original model, on which fuse() was called")
    shared = Shared(config=model.config, info=model.info, licence=licence)
    figures = [] if report is None else measured_figures(Path(report))
    _write(Path(folder), model.state_dict(), shared, figures, overwrite)
    return Path(folder)


def _write(folder: Path, state: Mapping[str, Tensor], shared: Shared, figures: list[Figure], overwrite: bool) -> None:
    write_folder(folder, state, replace(shared, card=model_card(shared, figures)), overwrite=overwrite)


def from_pretrained(kind: type[nn.Module], name: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Loads a model of class `kind` from a folder, a file or a repository; see `xcit.XCiT.from_pretrained`."""
    source = os.fspath(name)
    if revision is not None and (is_file(name) or source.startswith(PREFIX)):
        raise XCiTError(
            f"{source}: only a repository of the Hub has revisions: write USER/REPO, or {PREFIX}USER/REPO@{revision}"
        )
    if not is_file(name):
        source = f"{PREFIX}{source}" + (f"@{revision}" if revision else "")
    built = load_stored(read_source(source, None))
    if not isinstance(built, kind):
        raise XCiTError(
            f"{source} is a {type(built).__name__}, not a {kind.__name__}: xcit.get_model loads any kind of model"
        )
    return built


def push_to_hub(
    model: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = "Add model",
    licence: str = "",
    report: str | os.PathLike[str] | None = None,
) -> str:
    """Writes a model as a folder, uploads it to the Hub, and returns its URL; see `xcit.XCiT.push_to_hub`."""
    if switch := offline_switch():
        raise XCiTError(f"{repo_id}: not uploaded, because {switch} is set")
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub_endpoint(), token=token, library_name="xcit")
    with TemporaryDirectory() as parent:
        folder = save_pretrained(model, Path(parent) / "model", licence=licence, report=report)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            found = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=branch, commit_message=commit_message
            )
        except Exception as error:  # the exception classes differ between versions of the client and its HTTP library
            cause = error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise XCiTError(f"{repo_id}: can't be uploaded to {hub_endpoint()}: {reason}") from error
    return str(found)
