"""Weights of the zoo and of files into models."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from xcit.errors import XCiTError
from xcit.models import ModelInfo, Segmenter, SegmenterConfig, SegmenterInfo, XCiT, XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.weights.fetch import Progress, cache_dir, obtain
from xcit.weights.files import StoredWeights, digest, read_checkpoint, write_safetensors
from xcit.weights.load import check_state, load_state, nonfinite
from xcit.zoo.ade20k import ade20k_class_names
from xcit.zoo.detectors import EITHER_PATCH, detector_info
from xcit.zoo.imagenet import imagenet_class_ids, imagenet_class_names
from xcit.zoo.names import find_record, is_known
from xcit.zoo.records import Checkpoint, DetectorRecord, Record, SegmenterRecord
from xcit.zoo.stored import (
    ModelConfig,
    build_model,
    build_stored_detector,
    build_stored_segmenter,
    describe,
    describe_detector,
    describe_segmenter,
    model_metadata,
    outline,
    read_metadata,
    shape_from_state,
)

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def load_checkpoint(record: Checkpoint, *, progress: Progress | None = None) -> XCiT:
    """A checkpoint's model, downloaded first if it is not on this machine."""
    stored = read_zoo(record, progress)
    built = build_model(record.config, stored.state, str(stored.path))
    # A packaged file's own metadata are at hand: no second reading at each start.
    built.info = checkpoint_info(record) if record.packaged is None else describe(stored)[1]
    return built


def load_file(path: Path) -> XCiT:
    """The model of a weights file: one that `save_model` wrote, or a published architecture in any format.

    Raises:
        XCiTError: if the file can't be read, is not of a known model, or holds a detector or segmenter.
    """
    return load_stored(read_verified(path))


def load_stored(stored: StoredWeights) -> XCiT:
    """The model of what was read of a file; raises as `load_file` does."""
    _refuse_dense(stored)
    config, info = describe(stored)
    built = build_model(config, stored.state, str(stored.path))
    built.info = info
    return built


def load_stored_segmenter(stored: StoredWeights) -> Segmenter:
    """The segmenter of what was read of a file: one that `save_model` wrote, or a published one.

    Raises:
        XCiTError: if it holds no segmenter, or one of a head on no known architecture.
    """
    config, info = describe_segmenter(stored)
    built = build_stored_segmenter(config, stored.dense, str(stored.path))
    built.info = info
    return built


def load_segmenter(record: SegmenterRecord, *, progress: Progress | None = None) -> Segmenter:
    """A published segmenter, downloaded first if it is not on this machine."""
    stored = read_zoo(record, progress)
    built = build_stored_segmenter(record.model, stored.dense, str(stored.path))
    built.info = segmenter_info(record)
    return built


def load_segmenter_as(config: SegmenterConfig, source: str, *, progress: Progress | None = None) -> Segmenter:
    """A segmenter of a given head and backbone with the weights of a path or URL, whatever its classes.

    Raises:
        XCiTError: if the file can't be had or read, or holds no such segmenter; then in one line.
    """
    stored = read_verified(local(source, progress))
    if not stored.dense:
        raise XCiTError(
            f"{stored.path}: the weights of a classifier or backbone, for a segmenter: take them up in training by "
            "initialize.weights, or build with xcit.get_backbone(..., pyramid=True)"
        )
    found, info = describe_segmenter(stored)
    if found.kind != config.kind:
        raise XCiTError(f"{stored.path}: the weights of another head: {found.kind}, the model's is {config.kind}")
    _check_backbone(config.backbone, stored)
    if found.channels != config.channels:
        raise XCiTError(f"{stored.path}: its head has {found.channels} channels, the model's {config.channels}")
    built = build_stored_segmenter(replace(found, out_indices=config.out_indices), stored.dense, str(stored.path))
    built.info = info
    return built


def load_stored_detector(stored: StoredWeights) -> "MaskRCNN":
    """The detector of what was read of a file: one that `save_model` wrote, or a published one.

    Raises:
        XCiTError: if it holds no detector, or one of a head on no known architecture.
    """
    config, info = describe_detector(stored)
    built = build_stored_detector(config, stored.dense, str(stored.path))
    built.info = info
    return built


def load_detector_file(source: str, *, progress: Progress | None = None) -> "MaskRCNN":
    """The detector of a path or URL.

    Raises:
        XCiTError: if the file can't be had or read, or holds no detector.
    """
    return load_stored_detector(read_verified(local(source, progress)))


def load_detector(record: DetectorRecord, *, progress: Progress | None = None) -> "MaskRCNN":
    """A published detector, downloaded first if it is not on this machine."""
    stored = read_zoo(record, progress)
    built = load_stored_detector(stored)
    built.info = detector_info(record)
    return built


def load_detector_as(record: DetectorRecord, source: str, *, progress: Progress | None = None) -> "MaskRCNN":
    """A detector of a record's head and backbone with the weights of a path or URL, whatever its classes.

    Raises:
        XCiTError: if the file can't be had or read, or holds no such detector; then in one line.
    """
    stored = read_verified(local(source, progress))
    if stored.dense_kind != "mask-rcnn":
        raise XCiTError(f"{stored.path}: not the weights of a detector, which {record.name} is")
    found, info = describe_detector(stored)
    expected = fitting_config(record, stored)
    assert isinstance(expected, MaskRCNNConfig)
    _check_backbone(expected.backbone, stored)
    for name in ("channels", "box_features"):
        if getattr(found, name) != getattr(expected, name):
            raise XCiTError(f"{stored.path}: {name} is {getattr(found, name)}, the model's {getattr(expected, name)}")
    built = build_stored_detector(found, stored.dense, str(stored.path))
    built.info = info
    if info is None and found.num_classes == expected.num_classes:
        built.info = detector_info(record)
    return built


def load_as(
    config: XCiTConfig, source: str, *, num_classes: int | None = None, progress: Progress | None = None
) -> XCiT:
    """A model of a given shape with the weights of a path or URL, in any format.

    With `num_classes` the file may have another number of classes: its own head is loaded, if it has one.

    Raises:
        XCiTError: if the file can't be had or read, or does not fit.
    """
    path = local(source, progress)
    stored = read_verified(path)
    _refuse_dense(stored)
    has_head = "head.weight" in stored.state
    if not config.num_classes and num_classes is None:
        _check_backbone(config, stored)
    if not has_head and config.num_classes and num_classes is None:
        raise XCiTError(
            f"{path}: a backbone without a classifier; pass num_classes=0 for its features, or the number of classes "
            "for a new random head"
        )
    known = read_metadata(stored)
    if num_classes is not None:
        config = replace(config, num_classes=stored.state["head.weight"].shape[0] if has_head else 0)
    built = build_model(config, stored.state, str(path))
    built.info = known[1] if known else None
    return built


def _refuse_dense(stored: StoredWeights) -> None:
    if stored.format == "dense":
        raise XCiTError(
            f"{stored.path}: the backbone of a detection or segmentation model, without class attention; "
            "use xcit.get_backbone(..., pretrained=...)"
        )


def _check_backbone(config: XCiTConfig, stored: StoredWeights) -> None:
    """Refuses what can't be the weights of a model without classifier, in one line.

    Raises:
        XCiTError: if there is a classifier, or another architecture is told by the tensors.
    """
    shape = shape_from_state(stored.state, str(stored.path))
    num_classes = shape.pop("num_classes")
    for field, theirs in shape.items():
        if theirs != getattr(config, field):
            raise XCiTError(
                f"{stored.path}: the weights of another architecture: {field} is {theirs}, the model's "
                f"{getattr(config, field)}"
            )
    if num_classes:
        raise XCiTError(
            f"{stored.path}: a classifier of {num_classes} classes, for a model that has none: load it under a "
            "classifier's name, or pass num_classes=0 to leave its head out"
        )


def load_weights(model: XCiT, path: str | os.PathLike[str]) -> None:
    """Loads a file in any format into a model of your own shape, strictly.

    Raises:
        XCiTError: if the file can't be read or does not fit.
    """
    load_state(model, read_verified(Path(path)).state, os.fspath(path))


def checkpoint_info(record: Checkpoint) -> ModelInfo:
    """Class names and preprocessing of a checkpoint."""
    if record.packaged is not None:
        known = read_metadata(read_checkpoint(packaged_path(record)))
        assert known is not None and known[1] is not None
        return known[1]
    return ModelInfo(
        name=record.name,
        preprocessing=record.preprocessing,
        class_names=imagenet_class_names() if record.config.num_classes else (),
        class_ids=imagenet_class_ids() if record.config.num_classes else (),
    )


def segmenter_info(record: SegmenterRecord) -> SegmenterInfo:
    """Class names and preprocessing of a published segmenter."""
    return SegmenterInfo(name=record.name, preprocessing=record.preprocessing, class_names=ade20k_class_names())


def _info_of(record: Record) -> ModelInfo | SegmenterInfo | DetectorInfo:
    if isinstance(record, DetectorRecord):
        return detector_info(record)
    return checkpoint_info(record) if isinstance(record, Checkpoint) else segmenter_info(record)


def fitting_config(record: Record, stored: StoredWeights) -> ModelConfig:
    """A record's shape, with the file's patch size where it is not known for sure which one was published."""
    if not isinstance(record, DetectorRecord) or record.name != EITHER_PATCH:
        return record.model
    patch_size = shape_from_state(stored.state, str(stored.path))["patch_size"]
    return replace(record.model, backbone=replace(record.model.backbone, patch_size=patch_size))


def fetch(name: str, folder: str | os.PathLike[str] | None = None, *, progress: Progress | None = None) -> Path:
    """Brings a checkpoint's weights to this machine, for a time without a network.

    Args:
        name: of the zoo.
        folder: where to put a copy that can serve as `XCIT_MIRROR`; none leaves them in the cache (`XCIT_CACHE`).
        progress: called while they are downloaded.

    Returns:
        The safetensors file.

    Raises:
        XCiTError: if no source has it, what it has is damaged, or the file can't be written.
    """
    record = find_record(name)
    if folder is not None:
        _make_folder(Path(folder))
    stored = read_zoo(record, progress)
    if folder is None:
        return stored.path
    copy = Path(folder) / stored.path.name
    write_safetensors(copy, stored.whole, stored.metadata)
    return copy


def weights_path(record: Record, *, progress: Progress | None = None) -> Path:
    """A checkpoint in the cache, as safetensors in this project's names: fetched, checked and converted if need be.

    Raises:
        XCiTError: if no source has it, or what it has is damaged or does not fit.
    """
    if record.packaged is not None:
        return packaged_path(record)
    path = cache_dir() / "checkpoints" / f"{record.name}.safetensors"
    if path.exists():
        return path
    from filelock import FileLock  # a tenth of a second that only a download should cost

    _make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        if not path.exists():  # another process may have fetched it while this one waited
            stored, raw = _first_good(record, progress)
            config = fitting_config(record, stored)
            write_safetensors(path, stored.whole, model_metadata(config, _info_of(record)))
            if cache_dir() in raw.parents:  # else it is a mirror's, or in the Hub's own cache
                raw.unlink(missing_ok=True)
    return path


def _first_good(record: Record, progress: Progress | None) -> tuple[StoredWeights, Path]:
    """The weights of the first source that has them whole, and their file as it came."""
    sources, problems = record.sources, list[str]()
    while True:
        try:
            raw, source = obtain(record.name, sources, cache_dir() / "downloads", progress=progress)
        except XCiTError as error:
            raise XCiTError("\n".join([*problems, str(error)])) from None
        try:
            return _checked(raw, record), raw
        except XCiTError as error:
            if cache_dir() in raw.parents:  # or it would be found there for ever
                raw.unlink(missing_ok=True)
            if source is None or source == sources[-1]:
                raise XCiTError("\n".join([*problems, str(error)])) from None
            problems.append(str(error))
            sources = sources[sources.index(source) + 1 :]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XCiTError(f"{folder}: can't be made: {error.strerror}") from None


def packaged_path(record: Record) -> Path:
    """The file of a model that this package ships."""
    assert record.packaged is not None
    return Path(__file__).parent / "packaged" / record.packaged


def read_zoo(record: Record, progress: Progress | None) -> StoredWeights:
    """A checkpoint's weights; a damaged file in the cache is fetched anew."""
    path = weights_path(record, progress=progress)
    try:
        return read_verified(path)
    except XCiTError:
        if record.packaged is not None:
            raise
        path.unlink(missing_ok=True)
        return read_verified(weights_path(record, progress=progress))


def read_verified(path: Path) -> StoredWeights:
    """Reads a file, and refuses one whose tensors are not those it was written with."""
    stored = read_checkpoint(path)
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest it was written with")
    return stored


def _checked(path: Path, record: Record) -> StoredWeights:
    """The weights of a file that are whole, finite, and of the record's shape."""
    stored = read_verified(path)
    check_state(outline(fitting_config(record, stored)), stored.whole, str(path))
    if bad := nonfinite(stored.whole):
        raise XCiTError(f"{path}: tensor {bad[0]} holds NaN or infinity")
    return stored


def local(source: str, progress: Progress | None) -> Path:
    """A path as it is; a URL's file, downloaded."""
    if source.startswith("file://"):
        return Path(url2pathname(urlsplit(source).path))
    if not source.startswith(("http://", "https://")):
        return Path(source)
    from xcit.weights.fetch import download

    # Many a site calls its file model.safetensors.
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{PurePosixPath(urlsplit(source).path).name}"
    return download(source, cache_dir() / "downloads" / name, progress=progress)


def is_file(model: str | os.PathLike[str]) -> bool:
    """Whether a model is given by its path rather than by name."""
    if not isinstance(model, str) or model.endswith(WEIGHT_SUFFIXES):
        return True
    return Path(model).exists() and not is_known(model)
