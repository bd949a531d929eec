"""A model and its weights file: what our safetensors files say of themselves, and what shapes tell of others."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.images.preprocess import DINO_PREPROCESSING, Preprocessing, SegmentationPreprocessing
from xcit.models import ModelInfo, Segmenter, SegmenterConfig, SegmenterInfo, XCiT, XCiTConfig, build_segmenter
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.xcit import FusedXCiT
from xcit.weights.files import StoredWeights, write_safetensors
from xcit.weights.load import load_state
from xcit.zoo.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN

_SEGMENTATION = "semantic-segmentation"
_DETECTION = "object-detection"

METADATA_KEY = "xcit"
"""Under this key a safetensors file's metadata hold shape, class names and preprocessing, as JSON."""

ModelConfig = XCiTConfig | SegmenterConfig | MaskRCNNConfig
"""The shape of any model."""


def save_model(model: "XCiT | Segmenter | MaskRCNN", path: Path) -> None:
    """Writes weights, shape, class names and preprocessing to one safetensors file that `get_model` reads.

    Raises:
        XCiTError: if it can't be written; a file that was there stays as it was. If the model is fused.
    """
    if isinstance(model, FusedXCiT):
        raise XCiTError("a fused model can't be saved: save the one it was made from")
    write_safetensors(path, model.state_dict(), model_metadata(model.config, model.info))


def model_metadata(config: ModelConfig, info: ModelInfo | SegmenterInfo | DetectorInfo | None) -> dict[str, str]:
    """The metadata of a safetensors file."""
    content: dict[str, Any] = {"config": dataclasses.asdict(config)}
    if isinstance(config, SegmenterConfig):
        content["task"] = _SEGMENTATION
    if isinstance(config, MaskRCNNConfig):
        content["task"] = _DETECTION
    if info is not None:
        content["info"] = dataclasses.asdict(info)
    return {METADATA_KEY: json.dumps(content), "format": "pt"}


def read_metadata(stored: StoredWeights) -> tuple[XCiTConfig, ModelInfo | None] | None:
    """Shape and info of an XCiT from a file's metadata; of the backbone of a segmenter or detector, which has no info.

    None where the file has no such metadata.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    content = _content(stored)
    if content is None:
        return None
    with _readable(stored):
        if content.get("task") == _SEGMENTATION:
            return _segmenter_config(content["config"]).backbone, None
        if content.get("task") == _DETECTION:
            return _detector_config(content["config"]).backbone, None
        return XCiTConfig(**content["config"]), _info(content["info"]) if "info" in content else None


def read_segmenter_metadata(stored: StoredWeights) -> tuple[SegmenterConfig, SegmenterInfo | None] | None:
    """Shape and info of a segmenter from a file's metadata, none where it has none of a segmenter.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    content = _content(stored)
    if content is None or content.get("task") != _SEGMENTATION:
        return None
    with _readable(stored):
        info = content.get("info")
        return _segmenter_config(content["config"]), None if info is None else _segmenter_info(info)


def read_detector_metadata(stored: StoredWeights) -> tuple[MaskRCNNConfig, DetectorInfo | None] | None:
    """Shape and info of a detector from a file's metadata, none where it has none of a detector.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    content = _content(stored)
    if content is None or content.get("task") != _DETECTION:
        return None
    with _readable(stored):
        info = content.get("info")
        if info is not None:
            info = DetectorInfo(
                name=info["name"],
                class_names=tuple(info["class_names"]),
                category_ids=tuple(info["category_ids"]),
            )
        return _detector_config(content["config"]), info


def _content(stored: StoredWeights) -> dict[str, Any] | None:
    if METADATA_KEY not in stored.metadata:
        return None
    with _readable(stored):
        content = json.loads(stored.metadata[METADATA_KEY])
        if not isinstance(content, dict):
            raise TypeError("they are no mapping")
        return content


@contextmanager
def _readable(stored: StoredWeights) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise XCiTError(f"{stored.path}: its metadata can't be read: {error}") from None


def _segmenter_config(content: Mapping[str, Any]) -> SegmenterConfig:
    indices = content["out_indices"]
    return SegmenterConfig(
        **{
            **content,
            "backbone": XCiTConfig(**content["backbone"]),
            "out_indices": None if indices is None else tuple(indices),
        }
    )


def _detector_config(content: Mapping[str, Any]) -> MaskRCNNConfig:
    tuples = {name: tuple(content[name]) for name in ("out_indices", "mean", "std")}
    return MaskRCNNConfig(**{**content, **tuples, "backbone": XCiTConfig(**content["backbone"])})


def _segmenter_info(content: Mapping[str, Any]) -> SegmenterInfo:
    preprocessing = dict(content["preprocessing"])
    for name in ("mean", "std"):
        preprocessing[name] = tuple(preprocessing[name])
    return SegmenterInfo(
        name=content["name"],
        preprocessing=SegmentationPreprocessing(**preprocessing),
        class_names=tuple(content["class_names"]),
    )


def _info(content: Mapping[str, Any]) -> ModelInfo:
    preprocessing = dict(content["preprocessing"])
    for name in ("mean", "std"):
        preprocessing[name] = tuple(preprocessing[name])
    return ModelInfo(
        name=content["name"],
        preprocessing=Preprocessing(**preprocessing),
        class_names=tuple(content["class_names"]),
        class_ids=tuple(content["class_ids"]),
    )


def describe(stored: StoredWeights) -> tuple[XCiTConfig, ModelInfo | None]:
    """Shape and info of a file: from its metadata, else the shape from its tensors.

    A DINO file needs no metadata: its backbones have one preprocessing and no classes.

    Raises:
        XCiTError: if the metadata can't be read, or there are none and the tensors fit no known architecture.
    """
    if (known := read_metadata(stored)) is not None:
        return known
    config = config_from_state(stored.state, str(stored.path))
    if stored.format == "dino" and config.in_channels == len(DINO_PREPROCESSING.mean):
        return config, ModelInfo(name=stored.path.stem, preprocessing=DINO_PREPROCESSING)
    return config, None


def describe_segmenter(stored: StoredWeights) -> tuple[SegmenterConfig, SegmenterInfo | None]:
    """Shape and info of a segmenter's file: from its metadata, else the shape from its tensors.

    Raises:
        XCiTError: if it holds no segmenter, or neither tells what it is.
    """
    if (known := read_segmenter_metadata(stored)) is not None:
        return known
    if stored.dense_kind is None or stored.dense_kind == "mask-rcnn":
        raise XCiTError(f"{stored.path}: not the weights of a segmenter")
    state = stored.dense
    try:
        num_classes, channels = state["head.classifier.weight"].shape[:2]
        auxiliary = state["auxiliary.classifier.weight"].shape[1] if stored.dense_kind == "upernet" else None
    except (KeyError, ValueError, IndexError) as error:
        raise XCiTError(f"{stored.path}: not the weights of a segmenter: no tensor {error}") from None
    config = SegmenterConfig(
        kind=stored.dense_kind,
        backbone=config_from_state(stored.state, str(stored.path)),
        num_classes=num_classes,
        channels=channels,
    )
    return config if auxiliary is None else dataclasses.replace(config, auxiliary_channels=auxiliary), None


def describe_detector(stored: StoredWeights) -> tuple[MaskRCNNConfig, DetectorInfo | None]:
    """Shape and info of a detector's file: from its metadata, else the shape from its tensors.

    Raises:
        XCiTError: if it holds no detector, or neither tells what it is.
    """
    if (known := read_detector_metadata(stored)) is not None:
        return known
    if stored.dense_kind != "mask-rcnn":
        raise XCiTError(f"{stored.path}: not the weights of a detector")
    try:
        box_features = stored.dense["roi_heads.box_head.fc7.weight"].shape[0]
        num_classes, channels = stored.dense["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape[:2]
    except (KeyError, ValueError, IndexError) as error:
        raise XCiTError(f"{stored.path}: not the weights of a detector: no tensor {error}") from None
    backbone = config_from_state(stored.state, str(stored.path))
    config = MaskRCNNConfig(backbone=backbone, num_classes=num_classes, channels=channels, box_features=box_features)
    return config, None


def shape_from_state(state: Mapping[str, Tensor], what: str) -> dict[str, int]:
    """What native weights tell of their model, by the names of the fields of `XCiTConfig`.

    Raises:
        XCiTError: if they are not of an XCiT.
    """
    try:
        return {
            "patch_size": 2 ** _count(state, "stem"),
            "embed_dim": state["position.projection.weight"].shape[0],
            "depth": _count(state, "blocks"),
            "num_heads": state["blocks.0.xca.temperature"].shape[0],
            "in_channels": state["stem.0.conv.weight"].shape[1],
            "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        }
    except (KeyError, IndexError) as error:
        raise XCiTError(f"{what}: not the weights of an XCiT: no tensor {error}") from None


def config_from_state(state: Mapping[str, Tensor], what: str) -> XCiTConfig:
    """The shape of the model that native weights belong to.

    Raises:
        XCiTError: if the weights fit no known architecture; tensors do not tell everything (`tokens_norm`).
    """
    found = shape_from_state(state, what)
    changes: dict[str, Any] = {name: found.pop(name) for name in ("num_classes", "in_channels")}
    for config in ARCHITECTURES.values():
        if all(getattr(config, name) == value for name, value in found.items()):
            if "cls_token" not in state:
                changes |= {"cls_depth": 0, "global_pool": "none"}
            return dataclasses.replace(config, **changes)
    shape = ", ".join(f"{name} {value}" for name, value in found.items())
    raise XCiTError(
        f"{what}: no known architecture has {shape}, and the file does not say what it is; build it with "
        "xcit.XCiT(xcit.XCiTConfig(...)) and load the weights with xcit.load_weights(model, path)"
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    indices = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    return max(indices, default=-1) + 1


def build_model(config: XCiTConfig, state: Mapping[str, Tensor], what: str) -> XCiT:
    """A model of this shape with these weights, in evaluation mode.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    model = empty_model(config)
    load_state(model, state, what)
    return model.eval()


def build_stored_segmenter(config: SegmenterConfig, state: Mapping[str, Tensor], what: str) -> Segmenter:
    """A segmenter of this shape with these weights, in evaluation mode.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    model = empty_segmenter(config)
    load_state(model, state, what)
    return model.eval()


def build_stored_detector(config: MaskRCNNConfig, state: Mapping[str, Tensor], what: str) -> "MaskRCNN":
    """A detector of this shape with these weights, in evaluation mode.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    from xcit.models.detection.mask_rcnn import MaskRCNN

    with torch.device("meta"):
        model = MaskRCNN(config)
    _allocate(model)
    load_state(model, state, what)
    return model.eval()


def empty_model(config: XCiTConfig) -> XCiT:
    """A model on the CPU whose weights are not set: no time goes into an initialisation that is overwritten."""
    with torch.device("meta"):
        model = XCiT(config)
    _allocate(model)
    return model


def empty_segmenter(config: SegmenterConfig) -> Segmenter:
    """Likewise a segmenter."""
    with torch.device("meta"):
        model = build_segmenter(config)
    _allocate(model)
    return model


def outline(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors."""
    return {name: tensor.shape for name, tensor in _on_meta(config).state_dict().items()}


def num_parameters(config: ModelConfig) -> int:
    """Numbers that training learns."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def _on_meta(config: ModelConfig) -> nn.Module:
    if isinstance(config, MaskRCNNConfig):
        from xcit.models.detection.mask_rcnn import MaskRCNN

        with torch.device("meta"):
            return MaskRCNN(config)
    with torch.device("meta"):
        return XCiT(config) if isinstance(config, XCiTConfig) else build_segmenter(config)


def _allocate(model: nn.Module) -> None:
    # Not `to_empty`: from the meta device it imports sympy, which takes as long as half of torch.
    state = {
        name: torch.empty(outline.shape, dtype=outline.dtype, device="cpu")
        for name, outline in model.state_dict().items()
    }
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # the one thing a checkpoint may lack
            tensor.zero_()
    model.load_state_dict(state, assign=True)
