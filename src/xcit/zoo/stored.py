"""A model and its weights file: what our safetensors files say of themselves, and how a model is built of one."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xcit.config import from_dict
from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.models.fused import is_fused
from xcit.weights.files import StoredWeights, digest, read_checkpoint, write_safetensors
from xcit.weights.strict import load_state
from xcit.zoo.kinds import CLASSIFIER, Kind, all_heads, kind_of_config, kind_of_task, kind_of_weights
from xcit.zoo.shapes import config_from_state

METADATA_KEY = "xcit"
"""Under this key a safetensors file's metadata hold task, shape, class names and preprocessing, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a file says of its model: its kind, shape, and what else a person needs, if it has that."""

    kind: Kind[Any, Any, Any]
    config: Any
    info: Any | None


def save_model(model: nn.Module, path: Path) -> None:
    """Writes weights, shape, class names and preprocessing to one safetensors file that `get_model` reads.

    Raises:
        XCiTError: if it can't be written; a file that was there stays as it was. If the model is fused.
    """
    if is_fused(model):
        raise XCiTError("a fused model can't be saved: save the one it was made from")
    metadata = model_metadata(model.config, model.info)
    write_safetensors(path, model.state_dict(), metadata)


def model_metadata(config: Any, info: Any | None) -> dict[str, str]:
    """The metadata of a safetensors file."""
    kind = kind_of_config(config)
    content: dict[str, Any] = {"config": dataclasses.asdict(config)}
    if kind is not CLASSIFIER:  # the first files had no task, and were classifiers'
        content["task"] = kind.task
    if info is not None:
        content["info"] = dataclasses.asdict(info)
    return {METADATA_KEY: json.dumps(content), "format": "pt"}


def read_metadata(stored: StoredWeights) -> Statement | None:
    """What a file's metadata state; none where it has none of ours.

    Raises:
        XCiTError: if the metadata are not what `model_metadata` writes.
    """
    if METADATA_KEY not in stored.metadata:
        return None
    try:
        content = json.loads(stored.metadata[METADATA_KEY])
        kind = kind_of_task(content.get("task", CLASSIFIER.task))
        if kind is None:
            raise XCiTError(f"its task is {content['task']!r}, which this version does not know")
        info = None if content.get("info") is None else _section(kind.info, content["info"])
        return Statement(kind=kind, config=_section(kind.config, content["config"]), info=info)
    except (ValueError, TypeError, KeyError, AttributeError, XCiTError) as error:
        raise XCiTError(f"{stored.path}: its metadata can't be read: {error}") from None


def _section(kind: type[Any], content: object) -> Any:
    if not isinstance(content, dict):
        raise XCiTError(f"{content!r} is no {kind.__name__}")
    return from_dict(kind, content)


def describe(stored: StoredWeights) -> Statement:
    """What is known of a file: from its metadata, else its kind and shape from its tensors.

    Raises:
        XCiTError: if the metadata can't be read, or there are none and the tensors fit no known architecture.
    """
    if (stated := read_metadata(stored)) is not None:
        return stated
    kind = kind_of_weights(stored)
    config = kind.config_from_weights(stored)
    return Statement(kind=kind, config=config, info=kind.info_from_weights(stored, config))


def describe_backbone(stored: StoredWeights) -> XCiTConfig:
    """The shape of the XCiT in a file, whatever its head.

    Raises:
        XCiTError: as `describe` does.
    """
    stated = read_metadata(stored)
    if stated is None:
        return config_from_state(stored.state, str(stored.path))
    return stated.kind.backbone(stated.config)


def read_weights(path: str | Path, *, key: str | None = None) -> StoredWeights:
    """Reads a file of any kind of model and any format; see `read_checkpoint`."""
    return read_checkpoint(path, key=key, heads=all_heads())


def read_verified(path: Path) -> StoredWeights:
    """Reads a file, and refuses one whose tensors are not those it was written with."""
    stored = read_weights(path)
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest it was written with")
    return stored


def load_file(path: Path) -> XCiT:
    """The classifier or feature backbone of a weights file, in any format.

    Raises:
        XCiTError: if the file can't be read, is not of a known model, or holds a detector or segmenter.
    """
    stored = read_verified(path)
    _check_kind(CLASSIFIER, stored)
    return CLASSIFIER.require(load_stored(stored), str(path))


def load_stored(stored: StoredWeights) -> Any:
    """The model of what was read of a file, whatever its kind.

    Raises:
        XCiTError: if it is not of a known model.
    """
    stated = describe(stored)
    _check_kind(stated.kind, stored)
    built = build_stored(stated.config, stored.whole, str(stored.path))
    built.info = stated.info
    return built


def load_stored_as(config: Any, stored: StoredWeights, *, num_classes: int | None = None) -> Any:
    """A model of a given shape with what was read of a file.

    A segmenter or detector keeps the file's classes. Of a classifier the file may have another number of classes where
    `num_classes` is given: its own head is loaded, if it has one.

    Raises:
        XCiTError: if it does not fit.
    """
    kind = kind_of_config(config)
    _check_kind(kind, stored)
    stated = read_metadata(stored)
    fitting = kind.fit(config, stored, None if stated is None else stated.config, num_classes)
    built = build_stored(fitting, stored.whole, str(stored.path))
    built.info = None if stated is None else stated.info
    return built


def _check_kind(kind: Kind[Any, Any, Any], stored: StoredWeights) -> None:
    """Refuses the weights of another kind of model, in one line.

    Raises:
        XCiTError: if they are.
    """
    if kind is CLASSIFIER:
        if stored.dense:
            raise XCiTError(
                f"{stored.path}: the backbone of a detection or segmentation model, without class attention; "
                "use xcit.get_backbone(..., pretrained=...)"
            )
    elif not stored.dense:
        raise XCiTError(
            f"{stored.path}: not the weights of a {kind.name}: the weights of a classifier or backbone, for a "
            f"{kind.name}'s start in training (backbone_weights), or for xcit.get_backbone(..., pyramid=True)"
        )
    elif stored.head not in kind.heads:
        raise XCiTError(f"{stored.path}: not the weights of a {kind.name}: its head is {stored.head or 'unknown'}")


def load_weights(model: XCiT, path: str | os.PathLike[str]) -> None:
    """Loads a file in any format into a model of your own shape, strictly.

    Raises:
        XCiTError: if the file can't be read or does not fit.
    """
    load_state(model, read_verified(Path(path)).state, os.fspath(path))


def build_stored(config: Any, state: Mapping[str, Tensor], what: str) -> Any:
    """A model of this shape with these weights, in evaluation mode.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    model = empty_model(config)
    load_state(model, state, what)
    return model.eval()


def empty_model(config: Any) -> Any:
    """A model on the CPU whose weights are not set: no time goes into an initialisation that is overwritten."""
    model = _on_meta(config)
    # Not `to_empty`: from the meta device it imports sympy, which takes as long as half of torch.
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # the one thing a checkpoint may lack
            tensor.zero_()
    model.load_state_dict(state, assign=True)
    return model


def outline(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors."""
    return {name: tensor.shape for name, tensor in _on_meta(config).state_dict().items()}


def num_parameters(config: Any) -> int:
    """Numbers that training learns."""
    return sum(parameter.numel() for parameter in _on_meta(config).parameters())


def _on_meta(config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = kind_of_config(config).build(config)
    return model
