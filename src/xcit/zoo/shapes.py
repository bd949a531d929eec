"""Reads the shape of an XCiT from its tensors."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiTConfig
from xcit.zoo.architectures import ARCHITECTURES


def shape_from_state(state: Mapping[str, Tensor], what: str) -> dict[str, int]:
    """Returns the fields of `XCiTConfig` that can be found from the tensors, as a dict from field name to value.

    The tensors must have native names, which are this package's own tensor names. The tensors do not determine the
    strides. So `patch_size` is computed as if all convolutions of the stem had stride 2.

    Raises:
        XCiTError: if the weights are not those of an XCiT.
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


def told_by_weights(config: XCiTConfig, field: str) -> int:
    """Returns the value that `shape_from_state` finds for a field in the weights of a model with this config."""
    value: int = 2 ** len(config.strides) if field == "patch_size" else getattr(config, field)
    return value


def config_from_state(state: Mapping[str, Tensor], what: str) -> XCiTConfig:
    """Returns the config of the known architecture that fits the tensors, which must have native names.

    The strides of the stem are assumed to be 2. A known architecture is needed, because some fields, such as
    `tokens_norm`, can't be found from the tensors.

    Raises:
        XCiTError: if the tensors fit no known architecture.
    """
    found = shape_from_state(state, what)
    changes: dict[str, Any] = {name: found.pop(name) for name in ("num_classes", "in_channels")}
    for config in ARCHITECTURES.values():
        if not config.stem_strides and all(getattr(config, name) == value for name, value in found.items()):
            if "cls_token" not in state:
                changes |= {"cls_depth": 0, "global_pool": "none"}
            return dataclasses.replace(config, **changes)
    shape = ", ".join(f"{name} {value}" for name, value in found.items())
    raise XCiTError(
        f"{what}: no known architecture has {shape}, and the file does not state its model; build the model with "
        "xcit.XCiT(xcit.XCiTConfig(...)) and load the weights with xcit.load_weights(model, path)"
    )


def check_backbone(config: XCiTConfig, state: Mapping[str, Tensor], what: str) -> None:
    """Checks that weights fit the backbone in `config` and have no classifier.

    Raises:
        XCiTError: if the weights have a classifier, or belong to another architecture.
    """
    shape = shape_from_state(state, what)
    num_classes = shape.pop("num_classes")
    for field, theirs in shape.items():
        ours = told_by_weights(config, field)
        if theirs != ours:
            raise XCiTError(
                f"{what}: these are weights of another architecture: their {field} is {theirs}, the model's is {ours}"
            )
    if num_classes:
        raise XCiTError(
            f"{what}: the weights include a classifier of {num_classes} classes, but the model has none: give the name "
            "of a model with a classifier, or pass num_classes=0 to ignore the classifier in the file"
        )


def architecture_of(config: XCiTConfig) -> str:
    """Returns the name of the architecture with this config, or "its own config" if no known architecture has it.

    Classes, channels, pooling, class attention and stochastic depth are not compared.
    """
    for name, known in ARCHITECTURES.items():
        fields = ("num_classes", "in_channels", "global_pool", "cls_depth", "drop_path_rate")
        if config == dataclasses.replace(known, **{field: getattr(config, field) for field in fields}):
            return name
    return "its own config"


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    indices = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    return max(indices, default=-1) + 1
