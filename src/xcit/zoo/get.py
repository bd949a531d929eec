"""Names or files to models: what a person calls."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import Segmenter, XCiT, XCiTConfig, XCiTPyramid
from xcit.weights.fetch import DownloadProgress
from xcit.weights.files import StoredWeights
from xcit.weights.strict import load_state
from xcit.zoo.architectures import backbone_of
from xcit.zoo.kinds import CLASSIFIER
from xcit.zoo.load import fitting_config, load_record, read_record, read_source, record_info
from xcit.zoo.names import find_checkpoint, find_record, is_file
from xcit.zoo.records import Record
from xcit.zoo.stored import build_stored, describe_backbone, load_file, load_stored, load_stored_as, read_verified

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN


def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    progress: DownloadProgress | None = None,
) -> "XCiT | Segmenter | MaskRCNN":
    """Builds a model by name, in evaluation mode.

    Args:
        model: a name or alias (see `list_models`), or the path of a weights file, which then is loaded.
        pretrained: false for random weights, true for the published ones (downloaded once, see `fetch`), or the path or
            URL of a file in any published format (official, timm, mmpretrain, DINO; for a segmenter or detector the
            official one) with weights for this architecture.
        device: where to put it; none is the CPU.
        num_classes: another number than the weights have gives a new random head, 0 none.
        progress: called while weights are downloaded.

    Returns:
        The model: an `XCiT`, or a `Segmenter` or `MaskRCNN` for names and files of segmentation and detection.
        `model.info` holds its class names and preprocessing where they are known.

    Raises:
        XCiTError: if the name is unknown, the weights can't be had, or they don't fit.
    """
    if is_file(model):
        _one_file(model, pretrained)
        built = load_stored(read_verified(Path(model)))
    else:
        built = _from_record(find_record(os.fspath(model)), pretrained, num_classes, progress)
    return _with_classes(built, num_classes, device)


def get_xcit(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    progress: DownloadProgress | None = None,
) -> XCiT:
    """Builds a classifier or feature backbone by name, in evaluation mode: `get_model` where nothing else will do.

    Takes the arguments of `get_model`.

    Raises:
        XCiTError: as `get_model`, and if it is of another kind.
    """
    if is_file(model):
        _one_file(model, pretrained)
        built = load_file(Path(model))
    else:
        built = _from_record(find_checkpoint(os.fspath(model)), pretrained, num_classes, progress)
    return _with_classes(built, num_classes, device)


@overload
def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: Literal[False] = False,
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
    progress: DownloadProgress | None = None,
) -> XCiTPyramid: ...


def get_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    pyramid: bool = False,
    out_indices: Sequence[int] | None = None,
    progress: DownloadProgress | None = None,
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
        stored = read_verified(Path(model))
        config = describe_backbone(stored)
    else:
        record = find_record(os.fspath(model))
        config = record.backbone
        if pretrained is True:
            stored = read_record(record, progress)
        elif pretrained is not False:
            stored = read_source(os.fspath(pretrained), progress)
    config = backbone_of(config)
    built = _build_pyramid(config, out_indices, stored) if pyramid else _build_backbone(config, stored)
    return built if device is None else built.to(device)


def _build_backbone(config: XCiTConfig, stored: StoredWeights | None) -> XCiT:
    if stored is None:
        return XCiT(config).eval()
    return CLASSIFIER.require(
        build_stored(config, _without_classifier(stored.state), str(stored.path)), str(stored.path)
    )


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


def _from_record(
    record: Record,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    progress: DownloadProgress | None,
) -> Any:
    if pretrained is True:
        return load_record(record, progress=progress)
    if pretrained is False:
        config = record.model if num_classes is None else replace(record.model, num_classes=num_classes)
        return record.kind.build(config).eval()
    stored = read_source(os.fspath(pretrained), progress)
    built = load_stored_as(fitting_config(record, stored), stored, num_classes=num_classes)
    if built.info is None and built.num_classes == record.model.num_classes:
        built.info = record_info(record)
    return built


def _with_classes(built: Any, num_classes: int | None, device: str | torch.device | None) -> Any:
    if num_classes is not None and built.num_classes != num_classes:
        built.reset_classifier(num_classes)
    return built if device is None else built.to(device)


def _one_file(model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str]) -> None:
    if pretrained not in (False, True):
        raise XCiTError(f"two weight files were given: {os.fspath(model)} and {pretrained}")
