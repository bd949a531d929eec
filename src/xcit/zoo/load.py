"""Downloads, checks and caches the weights of published models, and loads them into models."""

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from xcit.errors import XCiTError
from xcit.weights.download import DownloadProgress, download
from xcit.weights.fetch import cache_dir, destination_of, obtain
from xcit.weights.files import StoredWeights, write_safetensors
from xcit.weights.hub import PREFIX, bring_repository
from xcit.weights.strict import check_state, nonfinite
from xcit.writing import make_folder
from xcit.zoo.adapters import is_adapter, read_adapter
from xcit.zoo.changes import UNCHANGED, Changes
from xcit.zoo.detectors import EITHER_PATCH
from xcit.zoo.names import find_record, is_file
from xcit.zoo.records import Record
from xcit.zoo.shapes import shape_from_state
from xcit.zoo.statement import model_metadata
from xcit.zoo.stored import build_stored, describe, load_stored_as, outline, read_verified


def load_record(record: Record, *, changes: Changes = UNCHANGED, progress: DownloadProgress | None = None) -> Any:
    """Builds the published model of a record, with the requested changes of its shape.

    The weights are downloaded if they are not yet on this machine.
    """
    stored = read_record(record, progress)
    built = build_stored(fitting_config(record, stored), stored.whole, str(stored.path), changes)
    # The info of the packaged model is in its file. For other models, the info is in the record.
    info = record.info() if record.packaged is None else describe(stored).info
    built.info = changes.of_info(info, record.kind.backbone(built.config))
    return built


def load_as(
    config: Any, source: str, *, num_classes: int | None = None, progress: DownloadProgress | None = None
) -> Any:
    """Builds a model with the shape in `config` and the weights of a file in any format.

    Args:
        config: the config (shape) of the model.
        source: the path or URL of the file.
        num_classes: for a classifier: if this is not None, the file may have another number of classes than `config`,
            and the model gets the file's head. A segmenter or detector always gets the file's classes.
        progress: called while a file is downloaded.

    Raises:
        XCiTError: if the file can't be downloaded or read, or does not fit `config`.
    """
    return load_stored_as(config, read_source(source, progress), num_classes=num_classes)


def record_info(record: Record) -> Any:
    """Returns the info (class names and preprocessing) of a record's model."""
    return record.info() if record.packaged is None else describe(read_verified(packaged_path(record))).info


def fitting_config(record: Record, stored: StoredWeights) -> Any:
    """Returns the config of a record's model.

    For one model, the published name and config state different patch sizes; the patch size of the weights is used.
    """
    if record.name != EITHER_PATCH:
        return record.model
    patch_size = shape_from_state(stored.state, str(stored.path))["patch_size"]
    return replace(record.model, backbone=replace(record.backbone, patch_size=patch_size))


def fetch(name: str, folder: str | os.PathLike[str] | None = None, *, progress: DownloadProgress | None = None) -> Path:
    """Downloads the weights of a published model to this machine, for use without a network connection.

    Args:
        name: a published name.
        folder: a folder for a copy of the file, for use as `XCIT_MIRROR` on another machine. None leaves
            the file in the cache (`XCIT_CACHE`).
        progress: called during the download.

    Returns:
        Path of the safetensors file.

    Raises:
        XCiTError: if no source has the weights, the download is damaged, or the file can't be written.
    """
    record = find_record(name)
    if folder is not None:
        make_folder(Path(folder))
    stored = read_record(record, progress)
    if folder is None:
        return stored.path
    copy = Path(folder) / stored.path.name
    write_safetensors(copy, stored.whole, stored.metadata)
    return copy


def weights_path(record: Record, *, progress: DownloadProgress | None = None) -> Path:
    """Returns the path of a published model's safetensors file.

    If the file is not in the cache, the weights are downloaded, checked and converted first.

    Raises:
        XCiTError: if no source has the weights, or if the downloaded file is damaged or does not fit.
    """
    if record.packaged is not None:
        return packaged_path(record)
    if not record.sources:
        _check_by_hand(record)
    path = cache_dir() / "checkpoints" / f"{record.name}.safetensors"
    if path.exists():
        return path
    from filelock import FileLock  # imported only for a download, because the import takes 0.1 s

    make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        if not path.exists():  # another process may have downloaded the file in the meantime
            stored, raw = _first_good(record, progress)
            config = fitting_config(record, stored)
            write_safetensors(path, stored.whole, model_metadata(config, record.info()))
            if cache_dir() in raw.parents:  # a file in a mirror or in the Hub's cache is kept
                raw.unlink(missing_ok=True)
    return path


def _check_by_hand(record: Record) -> None:
    """Checks that the file of a model without download sources is in the cache or in a mirror.

    Such a file can only be downloaded with a browser.

    Raises:
        XCiTError: if the file is missing; the message says where to download the file and how to use it.
    """
    mirror = os.environ.get("XCIT_MIRROR", "")  # a folder or a URL; for a URL, nothing is checked here
    name = f"{record.name}.safetensors"
    folders = [cache_dir() / "checkpoints", *([Path(mirror.removeprefix("file://"))] if mirror else [])]
    if not mirror.startswith(("http://", "https://")) and not any((folder / name).is_file() for folder in folders):
        raise XCiTError(
            f"{record.name}: a program can't download its file: download it with a browser from {record.by_hand}, "
            f"and pass it as pretrained=FILE or --weights FILE"
        )


def _first_good(record: Record, progress: DownloadProgress | None) -> tuple[StoredWeights, Path]:
    """Returns the weights from the first source with an undamaged file, and the path of this file."""
    sources, problems = record.sources, list[str]()
    while True:
        try:
            raw, source = obtain(record.name, sources, cache_dir() / "downloads", progress=progress)
        except XCiTError as error:
            raise XCiTError("\n".join([*problems, str(error)])) from None
        try:
            return _checked(raw, record), raw
        except XCiTError as error:
            if cache_dir() in raw.parents:  # if the damaged file were kept, every later call would find it
                raw.unlink(missing_ok=True)
            if source is None or source == sources[-1]:
                raise XCiTError("\n".join([*problems, str(error)])) from None
            problems.append(str(error))
            sources = sources[sources.index(source) + 1 :]


def packaged_path(record: Record) -> Path:
    """Returns the path of the weights file of a packaged model, which is part of this package."""
    assert record.packaged is not None
    return Path(__file__).parent / "packaged" / record.packaged


def read_record(record: Record, progress: DownloadProgress | None) -> StoredWeights:
    """Returns the weights of a published model. If the file in the cache is damaged, it is downloaded again."""
    path = weights_path(record, progress=progress)
    try:
        return read_verified(path)
    except XCiTError:
        if record.packaged is not None:
            raise
        path.unlink(missing_ok=True)
        return read_verified(weights_path(record, progress=progress))


def _checked(path: Path, record: Record) -> StoredWeights:
    """Reads a downloaded file, and checks that its weights are complete and finite, and fit the record's model."""
    stored = read_verified(path)
    check_state(outline(fitting_config(record, stored)), stored.whole, str(path))
    if bad := nonfinite(stored.whole):
        raise XCiTError(f"{path}: tensor {bad[0]} contains NaN or infinity")
    return stored


def _read_base(name: str, progress: DownloadProgress | None) -> StoredWeights:
    return read_source(name, progress) if is_file(name) else read_record(find_record(name), progress)


def read_source(source: str, progress: DownloadProgress | None) -> StoredWeights:
    """Reads the weights of a file or folder, which is downloaded first if `source` is a URL.

    Args:
        source: a file, a URL of a file, the folder of a model, or the folder of an adapter, which is merged into its
            base model. "hf-hub:USER/REPO" is a folder in a repository of the Hub. The source may end in "#KEY", where
            KEY selects one of several sets of weights in the file.
        progress: called during a download.

    Raises:
        XCiTError: if the source can't be downloaded or read.
    """
    if source.startswith(PREFIX):
        source = str(bring_repository(source, cache_dir() / "hub", progress))
    if is_adapter(source):
        return read_adapter(Path(source), lambda base: _read_base(base, progress))
    source, mark, key = source.partition("#") if "://" in source else (source, "", "")

    def read(path: Path) -> StoredWeights:
        return read_verified(Path(f"{path}{mark}{key}"))

    if not source.startswith(("http://", "https://")):
        return read(Path(url2pathname(urlsplit(source).path) if source.startswith("file://") else source))
    path = destination_of(source, cache_dir() / "downloads")
    # The names of mmpretrain's files end in the first eight hex digits of their SHA-256.
    published = re.search(r"^https://download\.openmmlab\.com/.+-([0-9a-f]{8})\.pth$", source)
    bring = partial(download, source, path, sha256=published and published[1], check=read, progress=progress)
    bring()
    try:
        return read(path)
    except XCiTError:  # the cached file is damaged
        path.unlink(missing_ok=True)
        return read(bring())
