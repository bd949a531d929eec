"""Describes the model in a weights file or folder, and builds models from stored weights.

Native tensor names are this package's own names. The official code, timm and mmpretrain use other names. A
statement is the description of a model: its kind, config (shape) and info (class names and preprocessing).
"""

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
    """Writes a model's weights, shape, class names and preprocessing to a safetensors file, which `get_model` can load.

    Raises:
        XCiTError: if the model is fused, or the file can't be written. An existing file is then unchanged.
    """
    if is_fused(model):
        raise XCiTError("a fused model can't be saved: save the original model, on which fuse() was called")
    metadata = model_metadata(model.config, model.info)
    write_safetensors(path, model.state_dict(), metadata)


def origin_of(stored: StoredWeights) -> Statement | None:
    """Returns the statement about the model in a file; None if the model is unknown.

    The statement is read from the metadata. If the metadata contain no statement but the file is a published file, the
    result is a statement about the published model.

    Raises:
        XCiTError: if the file's metadata can't be read.
    """
    stated = read_metadata(stored)
    if stated is None and (record := known_record(stored)) is not None:
        stated = Statement(kind=record.kind, config=record.model, info=record.info())
    return stated


def describe(stored: StoredWeights, *, has_strides: bool = False) -> Statement:
    """Returns the statement about the model in a file.

    The statement is read from the metadata, or found by the name or SHA-256 of the file (see `origin_of`). If both
    fail, the statement is derived from the tensors. Then the stem's strides are assumed, and a warning is logged.

    Args:
        stored: the file.
        has_strides: True if the caller knows the strides; then there is no warning.

    Raises:
        XCiTError: if the metadata can't be read, or the file is unknown and its tensors fit no known architecture.
    """
    if (stated := origin_of(stored)) is not None:
        return stated
    kind = kind_of_weights(stored)
    config = kind.config_from_weights(stored)
    if not has_strides:
        say_what_was_assumed(stored, config)
    return Statement(kind=kind, config=config, info=kind.info_from_weights(stored, config))


def describe_backbone(stored: StoredWeights, *, has_strides: bool = False) -> XCiTConfig:
    """Does what `describe` does, but returns only the config of the XCiT within the model.

    This function also works if the head of a segmenter or detector is unknown.

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
    """Reads a model's folder (see `read_folder`), or a weights file of any kind and format (see `read_checkpoint`)."""
    path = Path(path)
    if key is None and is_folder(path):
        return read_folder(path)
    return read_checkpoint(path, key=key, heads=all_heads())


def read_verified(path: Path, *, key: str | None = None) -> StoredWeights:
    """Does what `read_weights` does, and checks the tensors.

    Raises:
        XCiTError: as in `read_weights`, and if the tensors do not match the digest in the metadata.
    """
    stored = read_weights(path, key=key)
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest in its metadata")
    return stored


def load_file(path: Path, changes: Changes = UNCHANGED) -> XCiT:
    """Builds the classifier or feature backbone in a weights file of any format.

    Raises:
        XCiTError: if the file can't be read, its model is unknown, or it contains a detector or segmenter.
    """
    return load_classifier(read_verified(path), changes)


def load_classifier(stored: StoredWeights, changes: Changes = UNCHANGED) -> XCiT:
    """Does what `load_file` does, for a file that has already been read."""
    _check_kind(CLASSIFIER, stored)
    return CLASSIFIER.require(load_stored(stored, changes), str(stored.path))


def load_stored(stored: StoredWeights, changes: Changes = UNCHANGED) -> Any:
    """Builds the model, of any kind, from a file that has already been read.

    Raises:
        XCiTError: if the model in the file is unknown.
    """
    stated = describe(stored, has_strides=changes.stem_strides is not None)
    _check_kind(stated.kind, stored)
    built = build_stored(stated.config, stored.whole, str(stored.path), changes)
    built.info = changes.of_info(stated.info, stated.kind.backbone(built.config))
    return built


def load_stored_as(
    config: Any, stored: StoredWeights, *, num_classes: int | None = None, changes: Changes = UNCHANGED
) -> Any:
    """Builds a model with the shape in `config` from a file that has already been read.

    Args:
        config: the config (shape) of the model.
        stored: the file.
        num_classes: for a classifier: if this is not None, the file may have another number of classes than `config`,
            and the model gets the file's head. A segmenter or detector always gets the file's classes.
        changes: changes of the shape, which are made after the check that the file fits `config`.

    Raises:
        XCiTError: if the weights do not fit.
    """
    kind = kind_of_config(config)
    _check_kind(kind, stored)
    stated = read_metadata(stored)
    if changes.in_channels is not None:  # first the file's number of channels; `build_stored` changes it later
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
    """Checks that a config has the strides with which the weights in a file were trained.

    Nothing is checked if these strides are unknown, or if the config sets `stem_strides`.

    Raises:
        XCiTError: if the strides differ.
    """
    known = origin_of(stored)
    if known is None:
        return
    theirs = known.kind.backbone(known.config).strides
    if not wanted.stem_strides and len(theirs) == len(wanted.strides) and theirs != wanted.strides:
        raise XCiTError(
            f"{stored.path}: its stem has strides {', '.join(map(str, theirs))}, but the model's stem has "
            f"{', '.join(map(str, wanted.strides))}: give only the path of the file and no model name, or pass "
            "stem_strides"
        )


def _check_kind(kind: Kind[Any, Any, Any], stored: StoredWeights) -> None:
    """Checks that the weights in a file belong to this kind of model.

    Raises:
        XCiTError: if they belong to another kind of model.
    """
    if kind is CLASSIFIER:
        if stored.dense:
            raise XCiTError(
                f"{stored.path}: these are the weights of a detector or segmenter, which has no class attention: call "
                "xcit.get_backbone(..., pretrained=...)"
            )
    elif not stored.dense:
        raise XCiTError(
            f"{stored.path}: these are the weights of a classifier or backbone, not of a {kind.name}: to train a "
            f"{kind.name} from these weights, set backbone_weights; to compute feature maps, call "
            "xcit.get_backbone(..., pyramid=True)"
        )
    elif stored.head not in kind.heads:
        raise XCiTError(
            f"{stored.path}: these are not the weights of a {kind.name}: their head is {stored.head or 'unknown'}"
        )


def load_weights(model: XCiT, path: str | os.PathLike[str], *, key: str | None = None) -> None:
    """Loads a weights file of any format into a model of any shape; all tensor names and shapes must match.

    Args:
        model: the model, whose weights are replaced.
        path: the file.
        key: the key of the weights to load if the file contains several sets of weights, see `get_model`.

    Raises:
        XCiTError: if the file can't be read or does not fit.
    """
    stored = read_verified(Path(path), key=key)
    check_strides(model.config, stored)
    load_state(model, stored.state, str(stored.path))


def build_stored(config: Any, state: Mapping[str, Tensor], what: str, changes: Changes = UNCHANGED) -> Any:
    """Builds a model from a config and weights, in evaluation mode.

    Args:
        config: the config (shape) of the model.
        state: the weights under their native names.
        what: the file of the weights, for error messages.
        changes: changes of the shape; config and weights are changed before the model is built.

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
    """Checks that a config does not state more layers than a file has tensors.

    So a damaged config with a huge number of layers is found before time is spent on building the layers.

    Raises:
        XCiTError: if the config states more layers.
    """
    backbone = kind_of_config(config).backbone(config)
    claims = {"depth": backbone.depth, "cls_depth": backbone.cls_depth, "patch_size": len(backbone.strides)}
    for name, num_layers in claims.items():
        if num_layers > num_tensors:
            raise XCiTError(
                f"{what} does not fit the model: the model's {name} requires {num_layers:,} layers, but the file has "
                f"only {num_tensors:,} tensors"
            )


def empty_model(config: Any) -> Any:
    """Builds a model on the CPU with uninitialised weights, into which weights are loaded next."""
    model = on_meta(config)
    _give_memory(model)
    return model


def _give_memory(model: nn.Module) -> None:
    # `to_empty` is not used: on the meta device it imports sympy, which takes half as long as the import of torch.
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # a checkpoint may lack only this tensor
            tensor.zero_()
    model.load_state_dict(state, assign=True)


def outline(config: Any) -> dict[str, torch.Size]:
    """Returns the names and shapes of the tensors of a model with this config."""
    return {name: tensor.shape for name, tensor in on_meta(config).state_dict().items()}


def num_parameters(config: Any) -> int:
    """Returns the number of learned parameters of a model with this config."""
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


class _NoNormals(TorchFunctionMode):
    """Skips the initialisation of weights from a normal distribution, for models on the meta device.

    On the meta device there are no values to set. But torch would import sympy and its compiler for this, which takes
    as long as the import of torch itself.
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
        XCiTError: if no model can have this config, for example because its tensors would be too large.
    """
    try:
        with torch.device("meta"), _NoNormals():
            model: nn.Module = kind_of_config(config).build(config)
    except (RuntimeError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise XCiTError(f"{what}: no model can have its config: {brief(error)}") from error
    return model
