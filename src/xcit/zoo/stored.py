"""A model and its weights: what is known of a file or folder, and how a model is built of one."""

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
        XCiTError: if it can't be written; a file that was there stays as it was. If the model is fused.
    """
    if is_fused(model):
        raise XCiTError("a fused model can't be saved: save the one it was made from")
    metadata = model_metadata(model.config, model.info)
    write_safetensors(path, model.state_dict(), metadata)


def origin_of(stored: StoredWeights) -> Statement | None:
    """What a file says of itself, else what is published of it; none where it is of unknown origin.

    Raises:
        XCiTError: if its metadata can't be read.
    """
    stated = read_metadata(stored)
    if stated is None and (record := known_record(stored)) is not None:
        stated = Statement(kind=record.kind, config=record.model, info=record.info())
    return stated


def describe(stored: StoredWeights, *, has_strides: bool = False) -> Statement:
    """What is known of a file: from its metadata, else its origin, else its kind and shape from its tensors.

    Of the last a line is logged, unless the strides of its stem are told otherwise, which `has_strides` says.

    Raises:
        XCiTError: if the metadata can't be read, or there are none and the tensors fit no known architecture.
    """
    if (stated := origin_of(stored)) is not None:
        return stated
    kind = kind_of_weights(stored)
    config = kind.config_from_weights(stored)
    if not has_strides:
        say_what_was_assumed(stored, config)
    return Statement(kind=kind, config=config, info=kind.info_from_weights(stored, config))


def describe_backbone(stored: StoredWeights, *, has_strides: bool = False) -> XCiTConfig:
    """The shape of the XCiT in a file, whatever its head.

    Raises:
        XCiTError: as `describe` does.
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
    """Reads a file, and refuses one whose tensors are not those it was written with."""
    stored = read_weights(path, key=key)
    expected = stored.metadata.get("digest")
    if expected is not None and digest(stored.whole) != expected:
        raise XCiTError(f"{stored.path}: damaged: its tensors do not match the digest it was written with")
    return stored


def load_file(path: Path, changes: Changes = UNCHANGED) -> XCiT:
    """The classifier or feature backbone of a weights file, in any format.

    Raises:
        XCiTError: if the file can't be read, is not of a known model, or holds a detector or segmenter.
    """
    return load_classifier(read_verified(path), changes)


def load_classifier(stored: StoredWeights, changes: Changes = UNCHANGED) -> XCiT:
    """Like `load_file`, of what was read of a file."""
    _check_kind(CLASSIFIER, stored)
    return CLASSIFIER.require(load_stored(stored, changes), str(stored.path))


def load_stored(stored: StoredWeights, changes: Changes = UNCHANGED) -> Any:
    """The model of what was read of a file, whatever its kind, changed as is asked.

    Raises:
        XCiTError: if it is not of a known model.
    """
    stated = describe(stored, has_strides=changes.stem_strides is not None)
    _check_kind(stated.kind, stored)
    built = build_stored(stated.config, stored.whole, str(stored.path), changes)
    built.info = changes.of_info(stated.info, stated.kind.backbone(built.config))
    return built


def load_stored_as(
    config: Any, stored: StoredWeights, *, num_classes: int | None = None, changes: Changes = UNCHANGED
) -> Any:
    """A model of a given shape with what was read of a file, changed as is asked.

    A segmenter or detector keeps the file's classes. Of a classifier the file may have another number of classes where
    `num_classes` is given: its own head is loaded, if it has one.

    Raises:
        XCiTError: if it does not fit.
    """
    kind = kind_of_config(config)
    _check_kind(kind, stored)
    stated = read_metadata(stored)
    if changes.in_channels is not None:  # the file's own are made to fit
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
    """Refuses weights whose stem is known to have other strides than the model, unless its config states them.

    Raises:
        XCiTError: if they have.
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


def load_weights(model: XCiT, path: str | os.PathLike[str], *, key: str | None = None) -> None:
    """Loads a file in any format into a model of your own shape, strictly.

    Args:
        model: whose weights are replaced.
        path: the file.
        key: which of several sets of weights in one file to take, see `get_model`.

    Raises:
        XCiTError: if the file can't be read or does not fit.
    """
    stored = read_verified(Path(path), key=key)
    check_strides(model.config, stored)
    load_state(model, stored.state, str(stored.path))


def build_stored(config: Any, state: Mapping[str, Tensor], what: str, changes: Changes = UNCHANGED) -> Any:
    """A model of this shape with these weights, in evaluation mode; or of this shape changed, with its own of them.

    Raises:
        XCiTError: if names or shapes differ; the message lists them.
    """
    if changes != UNCHANGED:
        config = changes.of(config)
        if changes.in_channels is not None:
            state = with_channels(state, changes.in_channels)
    check_claims(config, len(state), what)
    model = on_meta(config, what)
    # Before there is memory for it, of which a config can claim any amount.
    check_state({name: tensor.shape for name, tensor in model.state_dict().items()}, state, what)
    _give_memory(model)
    load_state(model, state, what)
    return model.eval()


def check_claims(config: Any, num_tensors: int, what: str) -> None:
    """Refuses a config that claims more layers than there are tensors, before time goes into building them.

    Raises:
        XCiTError: if it does.
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
    """A model on the CPU whose weights are not set: no time goes into an initialisation that is overwritten."""
    model = on_meta(config)
    _give_memory(model)
    return model


def _give_memory(model: nn.Module) -> None:
    # Not `to_empty`: from the meta device it imports sympy, which takes as long as half of torch.
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") for name, tensor in model.state_dict().items()
    }
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):  # the one thing a checkpoint may lack
            tensor.zero_()
    model.load_state_dict(state, assign=True)


def outline(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of a model's tensors."""
    return {name: tensor.shape for name, tensor in on_meta(config).state_dict().items()}


def num_parameters(config: Any) -> int:
    """Numbers that training learns."""
    return sum(parameter.numel() for parameter in on_meta(config).parameters())


class _NoNormals(TorchFunctionMode):
    """Leaves out first values from a normal: on the meta device torch imports sympy and its compiler for them.

    That takes as long as torch itself, and there are no numbers to set.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            return None
        return func(*args, **(kwargs or {}))


def on_meta(config: Any, what: str = "the model") -> nn.Module:
    """A model that has shapes and no numbers.

    Raises:
        XCiTError: if a model of such a config can't be: its tensors would have more numbers than can be counted.
    """
    try:
        with torch.device("meta"), _NoNormals():
            model: nn.Module = kind_of_config(config).build(config)
    except (RuntimeError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise XCiTError(f"{what}: no model has such a config: {brief(error)}") from error
    return model
