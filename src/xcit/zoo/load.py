"""Names or files to models with weights."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, overload
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import ModelInfo, XCiT, XCiTConfig, XCiTPyramid
from xcit.weights.fetch import Progress, cache_dir, obtain
from xcit.weights.files import StoredWeights, digest, read_checkpoint, write_safetensors
from xcit.weights.load import check_state, load_state, nonfinite
from xcit.zoo.imagenet import imagenet_class_ids, imagenet_class_names
from xcit.zoo.names import find_checkpoint, is_known
from xcit.zoo.records import Checkpoint
from xcit.zoo.stored import build_model, describe, empty_model, model_metadata, read_metadata, shape_from_state

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    progress: Progress | None = None,
) -> XCiT:
    """Builds a model by name, in evaluation mode.

    Args:
        model: a name or alias (see `list_models`), or the path of a weights file, which then is loaded.
        pretrained: false for random weights, true for the published ones (downloaded once, see `fetch`), or the path or
            URL of a file in any published format (official, timm, mmpretrain, DINO) with weights for this architecture.
        device: where to put it; none is the CPU.
        num_classes: another number than the weights have gives a new random head, 0 none.
        progress: called while weights are downloaded.

    Returns:
        The model. `model.info` holds its class names and preprocessing where they are known.

    Raises:
        XCiTError: if the name is unknown, the weights can't be had, or they don't fit.
    """
    if is_file(model):
        _one_file(model, pretrained)
        built = load_file(Path(model))
    else:
        record = find_checkpoint(os.fspath(model))
        if pretrained is True:
            built = load_checkpoint(record, progress=progress)
        elif pretrained is False:
            built = XCiT(replace(record.config, num_classes=_or(num_classes, record.config.num_classes))).eval()
        else:
            built = load_as(record.config, os.fspath(pretrained), num_classes=num_classes, progress=progress)
            if built.info is None and built.num_classes == record.config.num_classes:
                built.info = checkpoint_info(record)
    if num_classes is not None and built.config.num_classes != num_classes:
        built.reset_classifier(num_classes)
    return built if device is None else built.to(device)


@overload
def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: Literal[False] = False,
    progress: Progress | None = None,
) -> XCiT: ...


@overload
def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: Literal[True],
    out_indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> XCiTPyramid: ...


def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: bool = False,
    out_indices: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> XCiT | XCiTPyramid:
    """Builds the part that gives patch tokens alone: no class token, no class attention, no final norm, no head.

    Takes the arguments of `get_model`. Weights may be a classifier's, whose other parts are left out, or the backbone
    of a detection or segmentation model. `forward_intermediates` gives its feature maps.

    Args:
        model: see `get_model`.
        pretrained: see `get_model`.
        device: see `get_model`.
        pyramid: give maps of strides 4, 8, 16 and 32 instead, for a detector's or segmenter's heads: the few layers
            that resize the maps have the weights of a detection or segmentation model, and are new with any other.
        out_indices: the four blocks that make the pyramid, see `XCiTPyramid`.
        progress: called while weights are downloaded.
    """
    if out_indices is not None and not pyramid:
        raise XCiTError("out_indices are the blocks of a pyramid: pass pyramid=True, or call forward_intermediates")
    stored: StoredWeights | None = None
    if is_file(model):
        _one_file(model, pretrained)
        stored = _verified(read_checkpoint(Path(model)))
        config, _ = describe(stored)
    else:
        record = find_checkpoint(os.fspath(model))
        config = record.config
        if pretrained is True:
            stored = _read_zoo(record, progress)
        elif pretrained is not False:
            stored = _verified(read_checkpoint(_local(os.fspath(pretrained), progress)))
    config = _backbone_config(config)
    built = _build_pyramid(config, out_indices, stored) if pyramid else _build_backbone(config, stored)
    return built if device is None else built.to(device)


def _build_backbone(config: XCiTConfig, stored: StoredWeights | None) -> XCiT:
    if stored is None:
        return XCiT(config).eval()
    return build_model(config, _without_classifier(stored.state), str(stored.path))


def _build_pyramid(config: XCiTConfig, out_indices: Sequence[int] | None, stored: StoredWeights | None) -> XCiTPyramid:
    built = XCiTPyramid(config, out_indices)
    if stored is not None and stored.dense:
        own = {name.removeprefix("backbone."): tensor for name, tensor in stored.dense.items()}
        load_state(built, {name: own[name] for name in own if name.startswith(("xcit.", "pyramid."))}, str(stored.path))
    elif stored is not None:
        load_state(built.xcit, _without_classifier(stored.state), str(stored.path))
    return built.eval()


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    classifier_only = ("cls_token", "cls_blocks.", "norm.", "head.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(classifier_only)}


def load_checkpoint(record: Checkpoint, *, progress: Progress | None = None) -> XCiT:
    """A checkpoint's model, downloaded first if it is not on this machine."""
    stored = _read_zoo(record, progress)
    built = build_model(record.config, stored.state, str(stored.path))
    # A packaged file's own metadata are at hand: no second reading at each start.
    built.info = checkpoint_info(record) if record.packaged is None else describe(stored)[1]
    return built


def load_file(path: Path) -> XCiT:
    """The model of a weights file: one that `save_model` wrote, or a published architecture in any format."""
    stored = _verified(read_checkpoint(path))
    config, info = describe(stored)
    built = build_model(config, stored.state, str(path))
    built.info = info
    return built


def load_as(
    config: XCiTConfig, source: str, *, num_classes: int | None = None, progress: Progress | None = None
) -> XCiT:
    """A model of a given shape with the weights of a path or URL, in any format.

    With `num_classes` the file may have another number of classes: its own head is loaded, if it has one.

    Raises:
        XCiTError: if the file can't be had or read, or does not fit.
    """
    path = _local(source, progress)
    stored = _verified(read_checkpoint(path))
    if stored.format == "dense":
        raise XCiTError(
            f"{path}: the backbone of a detection or segmentation model, without class attention; "
            "use xcit.get_backbone(..., pretrained=...)"
        )
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
    load_state(model, _verified(read_checkpoint(Path(path))).state, os.fspath(path))


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
    record = find_checkpoint(name)
    if folder is not None:
        _make_folder(Path(folder))
    stored = _read_zoo(record, progress)
    if folder is None:
        return stored.path
    copy = Path(folder) / stored.path.name
    write_safetensors(copy, stored.state, stored.metadata)
    return copy


def weights_path(record: Checkpoint, *, progress: Progress | None = None) -> Path:
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
            write_safetensors(path, stored.state, model_metadata(record.config, checkpoint_info(record)))
            if cache_dir() in raw.parents:  # else it is a mirror's, or in the Hub's own cache
                raw.unlink(missing_ok=True)
    return path


def _first_good(record: Checkpoint, progress: Progress | None) -> tuple[StoredWeights, Path]:
    """The weights of the first source that has them whole, and their file as it came."""
    sources, problems = record.sources, list[str]()
    while True:
        try:
            raw, source = obtain(record.name, sources, cache_dir() / "downloads", progress=progress)
        except XCiTError as error:
            raise XCiTError("\n".join([*problems, str(error)])) from None
        try:
            return _checked(raw, record.config), raw
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


def packaged_path(record: Checkpoint) -> Path:
    """The file of a model that this package ships."""
    assert record.packaged is not None
    return Path(__file__).parent / "packaged" / record.packaged


def _read_zoo(record: Checkpoint, progress: Progress | None) -> StoredWeights:
    """A checkpoint's weights; a damaged file in the cache is fetched anew."""
    path = weights_path(record, progress=progress)
    try:
        return _verified(read_checkpoint(path))
    except XCiTError:
        if record.packaged is not None:
            raise
        path.unlink(missing_ok=True)
        return _verified(read_checkpoint(weights_path(record, progress=progress)))


def _verified(stored: StoredWeights) -> StoredWeights:
    """Refuses a file whose tensors are not those it was written with."""
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest it was written with")
    return stored


def _checked(path: Path, config: XCiTConfig) -> StoredWeights:
    """The weights of a file that are whole, finite, and of this shape."""
    stored = _verified(read_checkpoint(path))
    check_state({name: t.shape for name, t in empty_model(config).state_dict().items()}, stored.state, str(path))
    if bad := nonfinite(stored.state):
        raise XCiTError(f"{path}: tensor {bad[0]} holds NaN or infinity")
    return stored


def _local(source: str, progress: Progress | None) -> Path:
    """A path as it is; a URL's file, downloaded."""
    if source.startswith("file://"):
        return Path(url2pathname(urlsplit(source).path))
    if not source.startswith(("http://", "https://")):
        return Path(source)
    from xcit.weights.fetch import download

    # Many a site calls its file model.safetensors.
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{PurePosixPath(urlsplit(source).path).name}"
    return download(source, cache_dir() / "downloads" / name, progress=progress)


def _backbone_config(config: XCiTConfig) -> XCiTConfig:
    return replace(config, cls_depth=0, num_classes=0, global_pool="none")


def is_file(model: str | os.PathLike[str]) -> bool:
    """Whether a model is given by its path rather than by name."""
    if not isinstance(model, str) or model.endswith(WEIGHT_SUFFIXES):
        return True
    return Path(model).exists() and not is_known(model)


def _one_file(model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str]) -> None:
    if pretrained not in (False, True):
        raise XCiTError(f"two weight files were given: {os.fspath(model)} and {pretrained}")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
