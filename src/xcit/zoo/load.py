"""Weights of the zoo: downloads them, checks them, caches them, and loads them into models."""

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
    """Builds a record's model with the requested changes; the weights are downloaded first if necessary."""
    stored = read_record(record, progress)
    built = build_stored(fitting_config(record, stored), stored.whole, str(stored.path), changes)
    # A packaged file has its own metadata; for others the record's are used, which needs no second reading.
    info = record.info() if record.packaged is None else describe(stored).info
    built.info = changes.of_info(info, record.kind.backbone(built.config))
    return built


def load_as(
    config: Any, source: str, *, num_classes: int | None = None, progress: DownloadProgress | None = None
) -> Any:
    """Builds a model of a given shape with the weights of a path or URL, in any format.

    A segmenter or detector keeps the file's classes. If `num_classes` is given, a classifier's file may have another
    number of classes; the model then gets the file's head, if there is one.

    Raises:
        XCiTError: if the file can't be downloaded or read, or does not fit.
    """
    return load_stored_as(config, read_source(source, progress), num_classes=num_classes)


def record_info(record: Record) -> Any:
    """Returns class names and preprocessing of a record; a packaged file contains its own."""
    return record.info() if record.packaged is None else describe(read_verified(packaged_path(record))).info


def fitting_config(record: Record, stored: StoredWeights) -> Any:
    """Returns a record's config. If its published patch size is not certain, the file's is used."""
    if record.name != EITHER_PATCH:
        return record.model
    patch_size = shape_from_state(stored.state, str(stored.path))["patch_size"]
    return replace(record.model, backbone=replace(record.backbone, patch_size=patch_size))


def fetch(name: str, folder: str | os.PathLike[str] | None = None, *, progress: DownloadProgress | None = None) -> Path:
    """Downloads a checkpoint's weights to this machine, for use without a network.

    Args:
        name: a name of the zoo.
        folder: where to put a copy that can serve as `XCIT_MIRROR`; None leaves the file in the cache (`XCIT_CACHE`).
        progress: called during the download.

    Returns:
        The safetensors file.

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
    """Returns the cached safetensors file of a checkpoint; it is downloaded, checked and converted if necessary.

    Raises:
        XCiTError: if no source has the file, or if the file is damaged or does not fit.
    """
    if record.packaged is not None:
        return packaged_path(record)
    if not record.sources:
        _check_by_hand(record)
    path = cache_dir() / "checkpoints" / f"{record.name}.safetensors"
    if path.exists():
        return path
    from filelock import FileLock  # the import takes a tenth of a second, and only a download needs it

    make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        if not path.exists():  # another process may have downloaded it meanwhile
            stored, raw = _first_good(record, progress)
            config = fitting_config(record, stored)
            write_safetensors(path, stored.whole, model_metadata(config, record.info()))
            if cache_dir() in raw.parents:  # otherwise it belongs to a mirror or the Hub's cache
                raw.unlink(missing_ok=True)
    return path


def _check_by_hand(record: Record) -> None:
    """Checks that a file which only a person can download is in the cache or a mirror.

    Raises:
        XCiTError: if the file is in neither; the message says where to get it and how to use it.
    """
    mirror = os.environ.get("XCIT_MIRROR", "")  # a folder, or a URL, which is always tried
    name = f"{record.name}.safetensors"
    folders = [cache_dir() / "checkpoints", *([Path(mirror.removeprefix("file://"))] if mirror else [])]
    if not mirror.startswith(("http://", "https://")) and not any((folder / name).is_file() for folder in folders):
        raise XCiTError(
            f"{record.name}: its file can't be downloaded by a program: get it with a browser from {record.by_hand}, "
            f"and give it: pretrained=FILE, or --weights FILE"
        )


def _first_good(record: Record, progress: DownloadProgress | None) -> tuple[StoredWeights, Path]:
    """Returns the weights from the first source that has them undamaged, and the downloaded file."""
    sources, problems = record.sources, list[str]()
    while True:
        try:
            raw, source = obtain(record.name, sources, cache_dir() / "downloads", progress=progress)
        except XCiTError as error:
            raise XCiTError("\n".join([*problems, str(error)])) from None
        try:
            return _checked(raw, record), raw
        except XCiTError as error:
            if cache_dir() in raw.parents:  # otherwise every later call would find it again
                raw.unlink(missing_ok=True)
            if source is None or source == sources[-1]:
                raise XCiTError("\n".join([*problems, str(error)])) from None
            problems.append(str(error))
            sources = sources[sources.index(source) + 1 :]


def packaged_path(record: Record) -> Path:
    """Returns the file of a model that this package contains."""
    assert record.packaged is not None
    return Path(__file__).parent / "packaged" / record.packaged


def read_record(record: Record, progress: DownloadProgress | None) -> StoredWeights:
    """Returns a checkpoint's weights; a damaged file in the cache is downloaded again."""
    path = weights_path(record, progress=progress)
    try:
        return read_verified(path)
    except XCiTError:
        if record.packaged is not None:
            raise
        path.unlink(missing_ok=True)
        return read_verified(weights_path(record, progress=progress))


def _checked(path: Path, record: Record) -> StoredWeights:
    """Returns the weights of a file, after a check that they are complete, finite and of the record's shape."""
    stored = read_verified(path)
    check_state(outline(fitting_config(record, stored)), stored.whole, str(path))
    if bad := nonfinite(stored.whole):
        raise XCiTError(f"{path}: tensor {bad[0]} holds NaN or infinity")
    return stored


def _read_base(name: str, progress: DownloadProgress | None) -> StoredWeights:
    return read_source(name, progress) if is_file(name) else read_record(find_record(name), progress)


def read_source(source: str, progress: DownloadProgress | None) -> StoredWeights:
    """Returns the weights of a file, a URL, a model's folder, or an adapter's folder, which is merged.

    "hf-hub:USER/REPO" is one of these folders on the Hub. A downloaded file is cached if it contains weights.
    `source` may end in "#" and the key of the weights in the file.

    Raises:
        XCiTError: if the file can't be downloaded or read.
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
    # The names of mmpretrain's files end in the digest.
    published = re.search(r"^https://download\.openmmlab\.com/.+-([0-9a-f]{8})\.pth$", source)
    bring = partial(download, source, path, sha256=published and published[1], check=read, progress=progress)
    bring()
    try:
        return read(path)
    except XCiTError:  # the cached file is damaged
        path.unlink(missing_ok=True)
        return read(bring())
