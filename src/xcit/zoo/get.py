"""Names or files to models: what a person calls."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, overload

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import Segmenter, XCiT, XCiTConfig, XCiTPyramid, build_segmenter
from xcit.weights.fetch import Progress
from xcit.weights.files import StoredWeights
from xcit.weights.load import load_state
from xcit.zoo.detectors import detector_info
from xcit.zoo.load import (
    checkpoint_info,
    is_file,
    load_as,
    load_checkpoint,
    load_detector,
    load_detector_as,
    load_file,
    load_segmenter,
    load_segmenter_as,
    load_stored,
    load_stored_detector,
    load_stored_segmenter,
    local,
    read_verified,
    read_zoo,
    segmenter_info,
)
from xcit.zoo.names import find_checkpoint, find_record
from xcit.zoo.records import DetectorRecord, SegmenterRecord
from xcit.zoo.segmenters import backbone_of
from xcit.zoo.stored import build_model, describe

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN

Built = TypeVar("Built", XCiT, Segmenter, "MaskRCNN")


def get_model(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    progress: Progress | None = None,
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
        stored = read_verified(Path(model))
        if stored.dense_kind is None:
            return _with_classes(load_stored(stored), num_classes, device)
        if stored.dense_kind == "mask-rcnn":
            return _with_classes(load_stored_detector(stored), num_classes, device)
        return _with_classes(load_stored_segmenter(stored), num_classes, device)
    record = find_record(os.fspath(model))
    if isinstance(record, DetectorRecord):
        return _with_classes(_detector(record, pretrained, num_classes, progress), num_classes, device)
    if isinstance(record, SegmenterRecord):
        return _with_classes(_segmenter(record, pretrained, num_classes, progress), num_classes, device)
    return get_xcit(model, pretrained, device, num_classes=num_classes, progress=progress)


def get_xcit(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | torch.device | None = None,
    *,
    num_classes: int | None = None,
    progress: Progress | None = None,
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
        record = find_checkpoint(os.fspath(model))
        if pretrained is True:
            built = load_checkpoint(record, progress=progress)
        elif pretrained is False:
            built = XCiT(replace(record.config, num_classes=_or(num_classes, record.config.num_classes))).eval()
        else:
            built = load_as(record.config, os.fspath(pretrained), num_classes=num_classes, progress=progress)
            if built.info is None and built.num_classes == record.config.num_classes:
                built.info = checkpoint_info(record)
    return _with_classes(built, num_classes, device)


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
        stored = read_verified(Path(model))
        config, _ = describe(stored)
    else:
        record = find_record(os.fspath(model))
        config = record.config
        if pretrained is True:
            stored = read_zoo(record, progress)
        elif pretrained is not False:
            stored = read_verified(local(os.fspath(pretrained), progress))
    config = backbone_of(config)
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


def _segmenter(
    record: SegmenterRecord,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    progress: Progress | None,
) -> Segmenter:
    if pretrained is True:
        return load_segmenter(record, progress=progress)
    if pretrained is False:
        return build_segmenter(replace(record.model, num_classes=_or(num_classes, record.model.num_classes))).eval()
    built = load_segmenter_as(record.model, os.fspath(pretrained), progress=progress)
    if built.info is None and built.num_classes == record.model.num_classes:
        built.info = segmenter_info(record)
    return built


def _detector(
    record: DetectorRecord,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    progress: Progress | None,
) -> "MaskRCNN":
    if pretrained is True:
        return load_detector(record, progress=progress)
    if pretrained is not False:
        return load_detector_as(record, os.fspath(pretrained), progress=progress)
    from xcit.models.detection.mask_rcnn import MaskRCNN

    built = MaskRCNN(replace(record.model, num_classes=_or(num_classes, record.model.num_classes))).eval()
    if built.num_classes == record.model.num_classes:
        built.info = detector_info(record)
    return built


def _with_classes(built: Built, num_classes: int | None, device: str | torch.device | None) -> Built:
    if num_classes is not None and built.num_classes != num_classes:
        built.reset_classifier(num_classes)
    return built if device is None else built.to(device)


def _one_file(model: str | os.PathLike[str], pretrained: bool | str | os.PathLike[str]) -> None:
    if pretrained not in (False, True):
        raise XCiTError(f"two weight files were given: {os.fspath(model)} and {pretrained}")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
