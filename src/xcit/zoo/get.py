"""Builds models from names or files."""

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
    """Builds a model from a name or a weights file, in evaluation mode.

    Args:
        model: a published name or alias (see `list_models`), an architecture such as "xcit-medium-12-p16", or the path
            or URL of a weights file. The weights of a file are always loaded.
        pretrained: for a name: False for random weights, True for the published weights, or the path or URL of a file
            with weights for this architecture. Published weights are downloaded if they are not yet on this machine.
            A file may have any published format: official, timm, mmpretrain or DINO. The file of a segmenter or
            detector must have the official format.
        device: the device of the model; None means the CPU.
        num_classes: number of classes. If the weights have another number of classes, the model gets a new random head.
            0 means no head, and None means the number of classes of the weights or the architecture.
        in_channels: number of channels of the images; None means the number of channels of the weights or the
            architecture. For another number of channels, weights and preprocessing are adapted as in timm,
            and `model.info.assumed` is True.
        global_pool: the input of the head: "cls" (timm's "token") for the class token, "avg" for the mean of the patch
            tokens, or "none" (timm's "") for all tokens.
        drop_path_rate: rate of stochastic depth in training.
        stem_strides: strides of the stem's convolutions, if the name or file does not determine them. For example,
            (1, 1, 2, 2) uses weights for patches of 16 in a model with patches of 4.
        features_only: whether to build a `FeatureMaps`, a model that returns the feature maps of some blocks, as in
            timm.
        out_indices: with `features_only`: the blocks whose maps are returned, or an int n for the last n blocks; None
            means the last 3, as in timm.
        key: the key of the weights to load if a file contains several sets of weights: for example "student" of a DINO
            checkpoint, "state_dict_ema", or the name of the model in a Lightning module. The key may also follow the
            path: "last.ckpt#state_dict_ema".
        progress: called while weights are downloaded.

    Returns:
        An `XCiT`, or a `Segmenter` or `MaskRCNN` for names and files of segmentation and detection. `model.info`
        contains the class names and the preprocessing; it is None if they are not known.

    Raises:
        XCiTError: if the name is unknown, or the weights can't be loaded or do not fit the model.
    """
    changes = Changes(
        in_channels=in_channels, global_pool=global_pool, drop_path_rate=drop_path_rate, stem_strides=stem_strides
    )
    model, pretrained = _with_key(model, pretrained, key)
    if features_only:
        if num_classes or global_pool is not None:
            raise XCiTError("a model with features_only=True has no head: leave out num_classes and global_pool")
        found = _backbone(model, pretrained, changes, progress)
        maps = FeatureMaps(_build_backbone(*found, changes), 3 if out_indices is None else out_indices).eval()
        return _placed(maps, device)
    if out_indices is not None:
        raise XCiTError("out_indices needs features_only=True, or get_backbone(..., pyramid=True)")
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
    """Builds a classifier or feature backbone from a name or a weights file, in evaluation mode.

    This function has the arguments of `get_model`, but the arguments that change the shape are in `changes`.

    Raises:
        XCiTError: as in `get_model`, and if the model is a segmenter or detector.
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
    """Builds a backbone that computes only patch tokens: without class token, class attention, final norm and head.

    The weights may be those of a classifier, detector or segmenter; other parts of the model are left out. The
    method `forward_intermediates` of the backbone returns feature maps.

    Args:
        model: see `get_model`.
        pretrained: see `get_model`.
        device: see `get_model`.
        pyramid: whether to build an `XCiTPyramid` instead. It returns maps of strides 4, 8, 16 and 32 for the head of
            a detector or segmenter. Its layers that resize the maps are loaded from the weights of a detector or
            segmenter; with other weights, these layers are random.
        out_indices: with `pyramid`: the four blocks whose maps are used, see `XCiTPyramid`.
        changes: changes of the shape; see the arguments `in_channels`, `drop_path_rate` and `stem_strides` of
            `get_model`.
        key: see `get_model`.
        progress: called while weights are downloaded.
    """
    if out_indices is not None and not pyramid:
        raise XCiTError("out_indices needs pyramid=True; without a pyramid, call forward_intermediates")
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
    """Returns a backbone's config before `changes` are applied, and the backbone's weights (None if random)."""
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
    # If the strides are changed, the patch size changes too. Then other layers resize the maps, and the file does not
    # contain weights for these layers.
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
    """Builds a published model, or an architecture without published weights; `find` returns the record of a name."""
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
    """Builds the model of a record or config, with random weights or with the weights of a file."""
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
    """Returns the record's info for a file without metadata.

    `assumed` is set to True unless the file is known to contain the published weights of this record.
    """
    info = record_info(record)
    if known_record(stored) is record or not hasattr(info, "assumed"):
        return info
    if stored.normalization is not None:
        mean, std = stored.normalization
        info = replace(info, preprocessing=info.preprocessing.changed(mean=mean, std=std))
    return replace(info, assumed=True)


def _not_published(name: str) -> XCiTError:
    return XCiTError(
        f"{name} is an architecture: no weights were published under this name; `xcit list` shows the published "
        "models, and pretrained=FILE loads your own weights"
    )


def _with_key(
    model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str], key: str | None
) -> tuple[str | os.PathLike[str], bool | str | os.PathLike[str]]:
    """Appends the key to the path of the weights file, and returns `model` and `pretrained`.

    Raises:
        XCiTError: if a key is given, but no file.
    """
    if key is None:
        return model, pretrained
    if not isinstance(pretrained, bool):
        return model, f"{os.fspath(pretrained)}#{key}"
    if is_file(model):
        return f"{os.fspath(model)}#{key}", pretrained
    raise XCiTError(f"a key ({key}) selects weights in a file: give a file as pretrained, or with --weights")


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
