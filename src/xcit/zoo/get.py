"""The functions that turn names or files into models."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.machine import find_device
from xcit.models import Segmenter, XCiT, XCiTConfig, XCiTPyramid
from xcit.models.features import FeatureMaps
from xcit.weights.download import DownloadProgress
from xcit.weights.files import StoredWeights
from xcit.weights.strict import load_state
from xcit.zoo.architectures import backbone_of
from xcit.zoo.changes import UNCHANGED, Changes, with_channels
from xcit.zoo.kinds import CLASSIFIER, kind_of_config
from xcit.zoo.load import fitting_config, load_record, read_record, read_source, record_info
from xcit.zoo.names import find_checkpoint, find_record, find_shape, is_file, is_known
from xcit.zoo.origin import known_record
from xcit.zoo.records import Record
from xcit.zoo.stored import (
    build_stored,
    check_strides,
    describe_backbone,
    load_classifier,
    load_stored,
    load_stored_as,
)

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN


@overload
def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    global_pool: str | None = None,
    drop_path_rate: float | None = None,
    stem_strides: Sequence[int] | None = None,
    features_only: Literal[False] = False,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> "XCiT | Segmenter | MaskRCNN": ...


@overload
def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    global_pool: str | None = None,
    drop_path_rate: float | None = None,
    stem_strides: Sequence[int] | None = None,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> FeatureMaps: ...


def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    global_pool: str | None = None,
    drop_path_rate: float | None = None,
    stem_strides: Sequence[int] | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> "XCiT | Segmenter | MaskRCNN | FeatureMaps":
    """Builds a model by name, in evaluation mode.

    Args:
        model: a name or alias (see `list_models`), an architecture such as "xcit-medium-12-p16", or the path or URL of
            a weights file, which is then loaded.
        pretrained: false for random weights, true for the published ones (downloaded once, see `fetch`), or the path or
            URL of a file with weights for this architecture, in any published format (official, timm, mmpretrain, DINO;
            for a segmenter or detector the official one).
        device: where to put the model; None means the CPU.
        num_classes: if it differs from the weights' number, the model gets a new random head; 0 means no head.
        in_channels: channels of the images. Weights for another number are summed (for one channel) or repeated and
            scaled, as in timm. Mean and std change in the same way, and then `model.info.assumed` is true.
        global_pool: the head's input: "cls" (timm's "token"), "avg", or "none" (timm's "").
        drop_path_rate: rate of stochastic depth in training.
        stem_strides: strides of the stem's convolutions, if neither the name nor the file determines them. For example,
            (1, 1, 2, 2) turns weights for patches of 16 into a model with patches of 4.
        features_only: return a `FeatureMaps` instead, which returns the maps after some blocks, as in timm.
        out_indices: the blocks whose maps are returned; an int n means the last n. The default is 3, as in timm.
        key: which weights to take if the file has several sets: "student" of a DINO checkpoint, "state_dict_ema",
            the name of a Lightning module's model. It may also follow the path: "last.ckpt#state_dict_ema".
        progress: called while weights are downloaded.

    Returns:
        An `XCiT`, or a `Segmenter` or `MaskRCNN` for names and files of segmentation and detection. `model.info` holds
        class names and preprocessing, if they are known.

    Raises:
        XCiTError: if the name is unknown, or the weights can't be loaded or do not fit.
    """
    changes = Changes(
        in_channels=in_channels, global_pool=global_pool, drop_path_rate=drop_path_rate, stem_strides=stem_strides
    )
    model, pretrained = _with_key(model, pretrained, key)
    if features_only:
        if num_classes or global_pool is not None:
            raise XCiTError("features_only has no head: leave num_classes and global_pool out")
        found = _backbone(model, pretrained, changes, progress)
        maps = FeatureMaps(_build_backbone(*found, changes), 3 if out_indices is None else out_indices).eval()
        return _placed(maps, device)
    if out_indices is not None:
        raise XCiTError("out_indices are the blocks of features_only=True, or of get_backbone(..., pyramid=True)")
    if is_file(model):
        _one_file(model, pretrained)
        built = load_stored(read_source(os.fspath(model), progress), changes)
    else:
        built = _from_name(find_record, os.fspath(model), pretrained, num_classes, changes, progress)
    return _with_classes(built, num_classes, device)


def get_xcit(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    changes: Changes = UNCHANGED,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> XCiT:
    """Builds a classifier or feature backbone by name, in evaluation mode, and refuses every other kind of model.

    It takes the arguments of `get_model`; those that change the model's shape are combined in `changes`.

    Raises:
        XCiTError: as in `get_model`, and if the model is of another kind.
    """
    model, pretrained = _with_key(model, pretrained, key)
    if is_file(model):
        _one_file(model, pretrained)
        built = load_classifier(read_source(os.fspath(model), progress), changes)
    else:
        built = _from_name(find_checkpoint, os.fspath(model), pretrained, num_classes, changes, progress)
    return _with_classes(built, num_classes, device)


@overload
def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: Literal[False] = False,
    changes: Changes = UNCHANGED,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> XCiT: ...


@overload
def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: Literal[True],
    out_indices: Sequence[int] | None = None,
    changes: Changes = UNCHANGED,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> XCiTPyramid: ...


def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: bool = False,
    out_indices: Sequence[int] | None = None,
    changes: Changes = UNCHANGED,
    key: str | None = None,
    progress: DownloadProgress | None = None,
) -> XCiT | XCiTPyramid:
    """Builds a model that returns only patch tokens: without class token, class attention, final norm and head.

    It takes the arguments of `get_model`. The weights may be a classifier's, whose other parts are left out, or those
    of a detector's or segmenter's backbone. `forward_intermediates` returns feature maps.

    Args:
        model: see `get_model`.
        pretrained: see `get_model`.
        device: see `get_model`.
        pyramid: return maps of strides 4, 8, 16 and 32 instead, for the heads of a detector or segmenter. The few
            layers that resize the maps get the weights of a detector or segmenter; with other weights they are random.
        out_indices: the four blocks that make the pyramid, see `XCiTPyramid`.
        changes: changes of the shape: `in_channels`, `drop_path_rate` and `stem_strides` of `get_model`.
        key: see `get_model`.
        progress: called while weights are downloaded.
    """
    if out_indices is not None and not pyramid:
        raise XCiTError("out_indices are the blocks of a pyramid: pass pyramid=True, or call forward_intermediates")
    model, pretrained = _with_key(model, pretrained, key)
    config, stored = _backbone(model, pretrained, changes, progress)
    built = (
        _build_pyramid(config, out_indices, stored, changes) if pyramid else _build_backbone(config, stored, changes)
    )
    return _placed(built, device)


def _backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str],
    changes: Changes,
    progress: DownloadProgress | None,
) -> tuple[XCiTConfig, StoredWeights | None]:
    """Returns a backbone's shape before the changes, and its weights if they were requested."""
    stored: StoredWeights | None = None
    if is_file(model):
        _one_file(model, pretrained)
        stored = read_source(os.fspath(model), progress)
        config = describe_backbone(stored, has_strides=changes.stem_strides is not None)
    else:
        name = os.fspath(model)
        shape = None if is_known(name) else find_shape(name)
        if shape is not None:
            config = shape
            if pretrained is True:
                raise _not_published(name)
        else:
            record = find_record(name)
            config = record.backbone
            if pretrained is True:
                stored = read_record(record, progress)
        if not isinstance(pretrained, bool):
            stored = read_source(os.fspath(pretrained), progress)
            if changes.stem_strides is None:
                check_strides(config, stored)
    return backbone_of(config), stored


def _build_backbone(config: XCiTConfig, stored: StoredWeights | None, changes: Changes) -> XCiT:
    if stored is None:
        return XCiT(changes.of(config)).eval()
    return CLASSIFIER.require(
        build_stored(config, _without_classifier(stored.state), str(stored.path), changes), str(stored.path)
    )


def _build_pyramid(
    config: XCiTConfig, out_indices: Sequence[int] | None, stored: StoredWeights | None, changes: Changes
) -> XCiTPyramid:
    config = changes.of(config)
    built = XCiTPyramid(config, out_indices)
    if stored is None:
        return built.eval()
    channels = config.in_channels
    own = {name.removeprefix("backbone."): tensor for name, tensor in stored.dense.items()}
    own = {name: tensor for name, tensor in own.items() if name.startswith(("xcit.", "pyramid."))}
    # For patches of another size the maps are resized by other layers, which the weights do not have.
    if stored.dense and changes.stem_strides is None:
        load_state(built, with_channels(own, channels), str(stored.path))
    else:
        load_state(built.xcit, with_channels(_without_classifier(stored.state), channels), str(stored.path))
    return built.eval()


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    classifier_only = ("cls_token", "cls_blocks.", "norm.", "head.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(classifier_only)}


def _from_name(
    find: Callable[[str], Record],
    name: str,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    changes: Changes,
    progress: DownloadProgress | None,
) -> Any:
    """Builds the model of a record, or of an architecture without a record."""
    if not is_known(name) and (config := find_shape(name)) is not None:
        if pretrained is True:
            raise _not_published(name)
        return _build(config, pretrained, num_classes, changes, progress)
    record = find(name)
    if pretrained is True:
        return load_record(record, changes=changes, progress=progress)
    return _build(record, pretrained, num_classes, changes, progress)


def _build(
    what: Record | XCiTConfig,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    changes: Changes,
    progress: DownloadProgress | None,
) -> Any:
    """Builds the model of a record or shape, with random weights or with those of a file."""
    record = None if isinstance(what, XCiTConfig) else what
    config = what.model if isinstance(what, Record) else what
    if isinstance(pretrained, bool):
        config = changes.of(config if num_classes is None else replace(config, num_classes=num_classes))
        return kind_of_config(config).build(config).eval()
    stored = read_source(os.fspath(pretrained), progress)
    fitting = config if record is None else fitting_config(record, stored)
    built = load_stored_as(fitting, stored, num_classes=num_classes, changes=changes)
    if built.info is None and record is not None and built.num_classes == config.num_classes:
        built.info = changes.of_info(_info_for(record, stored), record.kind.backbone(built.config))
    return built


def _info_for(record: Record, stored: StoredWeights) -> Any:
    """Returns the record's info for a file without metadata; it is assumed, unless the file is the record's own."""
    info = record_info(record)
    if known_record(stored) is record or not hasattr(info, "assumed"):
        return info
    if stored.normalization is not None:
        mean, std = stored.normalization
        info = replace(info, preprocessing=info.preprocessing.changed(mean=mean, std=std))
    return replace(info, assumed=True)


def _not_published(name: str) -> XCiTError:
    return XCiTError(
        f"{name} is an architecture: no weights were published under this name; `xcit list` shows what was, and "
        "pretrained=FILE takes your own"
    )


def _with_key(
    model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str], key: str | None
) -> tuple[str | os.PathLike[str], bool | str | os.PathLike[str]]:
    """Appends the key to the path that it belongs to; returns both arguments.

    Raises:
        XCiTError: if there is a key, but no file.
    """
    if key is None:
        return model, pretrained
    if not isinstance(pretrained, bool):
        return model, f"{os.fspath(pretrained)}#{key}"
    if is_file(model):
        return f"{os.fspath(model)}#{key}", pretrained
    raise XCiTError(f"a key ({key}) chooses among the weights of a file: give one as pretrained, or with --weights")


def _with_classes(built: Any, num_classes: int | None, device: str | torch.device | None) -> Any:
    if num_classes is not None and built.num_classes != num_classes:
        built.reset_classifier(num_classes)
    return _placed(built, device)


def _placed(built: Any, device: str | torch.device | None) -> Any:
    """Moves the model to a device, which may be torch's meta device.

    Raises:
        XCiTError: if this machine has no such device.
    """
    if device is None:
        return built
    return built.to(device if str(device) == "meta" else find_device(device))


def _one_file(model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str]) -> None:
    if pretrained not in (False, True):
        raise XCiTError(f"two weight files were given: {os.fspath(model)} and {pretrained}")
