"""Describes the model in a file or folder, and builds models from their stored weights."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig
from xcit.models.fused import is_fused
from xcit.weights.files import StoredWeights, digest, read_checkpoint, write_safetensors
from xcit.weights.pickles import brief
from xcit.weights.strict import check_state, load_state
from xcit.zoo.changes import UNCHANGED, Changes, with_channels
from xcit.zoo.folders import is_folder, read_folder
from xcit.zoo.kinds import CLASSIFIER, Kind, all_heads, kind_of_config, kind_of_weights
from xcit.zoo.origin import known_record, say_what_was_assumed
from xcit.zoo.shapes import config_from_state, shape_from_state
from xcit.zoo.statement import Statement, model_metadata, read_metadata


def save_model(model: nn.Module, path: Path) -> None:
    """Writes weights, shape, class names and preprocessing to one safetensors file that `get_model` reads.

    Raises:
        XCiTError: if the model is fused, or the file can't be written; an existing file is then unchanged.
    """
    if is_fused(model):
        raise XCiTError("a fused model can't be saved: save the one it was made from")
    metadata = model_metadata(model.config, model.info)
    write_safetensors(path, model.state_dict(), metadata)


def origin_of(stored: StoredWeights) -> Statement | None:
    """Returns the statement in a file, or that of the same published file; None if its origin is unknown.

    Raises:
        XCiTError: if the file's metadata can't be read.
    """
    stated = read_metadata(stored)
    if stated is None and (record := known_record(stored)) is not None:
        stated = Statement(kind=record.kind, config=record.model, info=record.info())
    return stated


def describe(stored: StoredWeights, *, has_strides: bool = False) -> Statement:
    """Returns the statement of a file: from its metadata, else from its origin, else from its tensors.

    In the last case a warning is logged, unless `has_strides` says that the caller knows the stem's strides.

    Raises:
        XCiTError: if the metadata can't be read, or if there are none and the tensors fit no known architecture.
    """
    if (stated := origin_of(stored)) is not None:
        return stated
    kind = kind_of_weights(stored)
    config = kind.config_from_weights(stored)
    if not has_strides:
        say_what_was_assumed(stored, config)
    return Statement(kind=kind, config=config, info=kind.info_from_weights(stored, config))


def describe_backbone(stored: StoredWeights, *, has_strides: bool = False) -> XCiTConfig:
    """Returns the config of the XCiT in a file of any kind of model.

    Raises:
        XCiTError: as in `describe`.
    """
    if (stated := origin_of(stored)) is not None:
        return stated.kind.backbone(stated.config)
    config = config_from_state(stored.state, str(stored.path))
    if not has_strides:
        say_what_was_assumed(stored, config)
    return config


def read_weights(path: str | os.PathLike[str], *, key: str | None = None) -> StoredWeights:
    """Reads a file of any kind of model and any format, see `read_checkpoint`, or a folder, see `read_folder`."""
    path = Path(path)
    if key is None and is_folder(path):
        return read_folder(path)
    return read_checkpoint(path, key=key, heads=all_heads())


def read_verified(path: Path, *, key: str | None = None) -> StoredWeights:
    """Reads a file, and raises an error if its tensors do not match its digest."""
    stored = read_weights(path, key=key)
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest it was written with")
    return stored


def load_file(path: Path, changes: Changes = UNCHANGED) -> XCiT:
    """Builds the classifier or feature backbone of a weights file, in any format.

    Raises:
        XCiTError: if the file can't be read, its model is unknown, or it holds a detector or segmenter.
    """
    return load_classifier(read_verified(path), changes)


def load_classifier(stored: StoredWeights, changes: Changes = UNCHANGED) -> XCiT:
    """Does the same as `load_file` for a file that has been read."""
    _check_kind(CLASSIFIER, stored)
    return CLASSIFIER.require(load_stored(stored, changes), str(stored.path))


def load_stored(stored: StoredWeights, changes: Changes = UNCHANGED) -> Any:
    """Builds a model of any kind from a file that was read, with the requested changes.

    Raises:
        XCiTError: if the model of the file is unknown.
    """
    stated = describe(stored, has_strides=changes.stem_strides is not None)
    _check_kind(stated.kind, stored)
    built = build_stored(stated.config, stored.whole, str(stored.path), changes)
    built.info = changes.of_info(stated.info, stated.kind.backbone(built.config))
    return built


def load_stored_as(
    config: Any, stored: StoredWeights, *, num_classes: int | None = None, changes: Changes = UNCHANGED
) -> Any:
    """Builds a model of a given shape with the weights of a file that was read, with the requested changes.

    A segmenter or detector keeps the file's classes. If `num_classes` is given, a classifier's file may have another
    number of classes; the model then gets the file's head, if there is one.

    Raises:
        XCiTError: if the weights do not fit.
    """
    kind = kind_of_config(config)
    _check_kind(kind, stored)
    stated = read_metadata(stored)
    if changes.in_channels is not None:  # first load with the file's own number of channels
        found = shape_from_state(stored.state, str(stored.path))["in_channels"]
        config = Changes(in_channels=found).of(config)
    fitting = kind.fit(config, stored, None if stated is None else stated.config, num_classes)
    if changes.stem_strides is None:
        check_strides(kind.backbone(config), stored)
        if not kind.backbone(config).stem_strides and origin_of(stored) is None:
            say_what_was_assumed(stored, fitting)
    built = build_stored(fitting, stored.whole, str(stored.path), changes)
    built.info = None if stated is None else changes.of_info(stated.info, kind.backbone(built.config))
    return built


def check_strides(wanted: XCiTConfig, stored: StoredWeights) -> None:
    """Checks that a model of this config has the strides with which the weights were trained, if these are known.

    A config that sets `stem_strides` is accepted with any strides.

    Raises:
        XCiTError: if the strides differ.
    """
    known = origin_of(stored)
    if known is None:
        return
    theirs = known.kind.backbone(known.config).strides
    if not wanted.stem_strides and len(theirs) == len(wanted.strides) and theirs != wanted.strides:
        raise XCiTError(
            f"{stored.path}: its stem has strides {', '.join(map(str, theirs))}, the model's "
            f"{', '.join(map(str, wanted.strides))}: load the file by itself, or pass stem_strides"
        )


def _check_kind(kind: Kind[Any, Any, Any], stored: StoredWeights) -> None:
    """Checks that weights belong to this kind of model.

    Raises:
        XCiTError: if the weights belong to another kind of model.
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


def load_weights(model: XCiT, path: str | os.PathLike[str], *, key: str | None = None) -> None:
    """Loads a file in any format into a model of your own shape; all names and shapes must match.

    Args:
        model: its weights are replaced.
        path: the file.
        key: which weights to take if the file has several sets, see `get_model`.

    Raises:
        XCiTError: if the file can't be read or does not fit.
    """
    stored = read_verified(Path(path), key=key)
    check_strides(model.config, stored)
    load_state(model, stored.state, str(stored.path))


def build_stored(config: Any, state: Mapping[str, Tensor], what: str, changes: Changes = UNCHANGED) -> Any:
    """Builds a model of this shape with these weights, in evaluation mode; with `changes`, both are changed first.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    if changes != UNCHANGED:
        config = changes.of(config)
        if changes.in_channels is not None:
            state = with_channels(state, changes.in_channels)
    check_claims(config, len(state), what)
    model = on_meta(config, what)
    # The check comes before memory is allocated, because a damaged config can require any amount of memory.
    check_state({name: tensor.shape for name, tensor in model.state_dict().items()}, state, what)
    _give_memory(model)
    load_state(model, state, what)
    return model.eval()


def check_claims(config: Any, num_tensors: int, what: str) -> None:
    """Checks that a config does not have more layers than there are tensors, before time is spent on building them.

    Raises:
        XCiTError: if the config has more layers.
    """
    backbone = kind_of_config(config).backbone(config)
    claims = {"depth": backbone.depth, "cls_depth": backbone.cls_depth, "patch_size": len(backbone.strides)}
    for name, num_layers in claims.items():
        if num_layers > num_tensors:
            raise XCiTError(
                f"{what} does not fit the model: its {num_tensors:,} tensors can't be those of {num_layers:,} layers, "
                f"as {name} says"
            )


def empty_model(config: Any) -> Any:
    """Returns a model on the CPU with uninitialised weights, for weights that are loaded next."""
    model = on_meta(config)
    _give_memory(model)
    return model


def _give_memory(model: nn.Module) -> None:
    # `to_empty` is not used: for the meta device it imports sympy, which takes half as long as torch itself.
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # the only tensor that a checkpoint may lack
            tensor.zero_()
    model.load_state_dict(state, assign=True)


def outline(config: Any) -> dict[str, torch.Size]:
    """Returns names and shapes of a model's tensors."""
    return {name: tensor.shape for name, tensor in on_meta(config).state_dict().items()}


def num_parameters(config: Any) -> int:
    """Returns the number of learned parameters."""
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


class _NoNormals(TorchFunctionMode):
    """Skips the initialisation of weights from a normal distribution, for models on the meta device.

    On the meta device there are no values to set, and torch would import sympy and its compiler for this, which takes
    as long as the import of torch.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return None
        return func(*args, **(kwargs or {}))


def on_meta(config: Any, what: str = "the model") -> nn.Module:
    """Builds a model on the meta device, which has shapes but no values.

    Raises:
        XCiTError: if the config is impossible, because its tensors would have more elements than can be counted.
    """
    try:
        with torch.device("meta"), _NoNormals():
            model: nn.Module = kind_of_config(config).build(config)
    except (RuntimeError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise XCiTError(f"{what}: no model has such a config: {brief(error)}") from error
    return model
