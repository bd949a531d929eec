"""Changes of a model's shape that a user can request: channels, pooling, stochastic depth and stem strides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xcit.errors import XCiTError
from xcit.models import XCiTConfig
from xcit.models.timm_calls import pool_of
from xcit.zoo.kinds import CLASSIFIER, kind_of_config

_STEM = "stem.0.conv.weight"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The requested changes; a field that is None changes nothing.

    Attributes:
        in_channels: number of channels of the images; the weights are adapted to it (see `with_channels`).
        global_pool: "cls", "avg" or "none", or timm's names "token" and "".
        drop_path_rate: rate of stochastic depth, the same in all XCA blocks.
        stem_strides: strides of the stem's convolutions (see `XCiTConfig`).
    """

    in_channels: int | None = None
    global_pool: str | None = None
    drop_path_rate: float | None = None
    stem_strides: Sequence[int] | None = None

    def of(self, config: Any) -> Any:
        """Returns a changed copy of a config, which may be of any kind of model.

        Raises:
            XCiTError: if a value is impossible, or `global_pool` is set for a segmenter or detector.
        """
        kind = kind_of_config(config)
        backbone: dict[str, Any] = {}
        if self.stem_strides is not None:
            backbone |= with_strides(tuple(self.stem_strides))
        if self.drop_path_rate is not None:
            backbone["drop_path_rate"] = self.drop_path_rate
        if self.global_pool is not None:
            if kind is not CLASSIFIER:
                raise XCiTError(f"global_pool is for classifiers: a {kind.name} has no pooling")
            backbone["global_pool"] = pool_of(self.global_pool)
        own: dict[str, Any] = {}
        channels = kind.backbone(config).in_channels
        if self.in_channels is not None and self.in_channels != channels:
            backbone["in_channels"] = self.in_channels
            own = _normalization(config, self.in_channels)
        if kind.backbone(config) is config:
            return replace(config, **backbone)
        return replace(config, backbone=replace(kind.backbone(config), **backbone), **own) if backbone else config

    def of_info(self, info: Any, config: XCiTConfig) -> Any:
        """Returns the info of the changed model; `config` is the changed config of its XCiT.

        If the number of channels changes, the mean and standard deviation are adapted, and `assumed` is set to True.
        """
        spec = getattr(info, "preprocessing", None)
        if spec is None or len(spec.mean) == config.in_channels or self.in_channels is None:
            return info
        return replace(info, preprocessing=replace(spec, **_normalization(spec, self.in_channels)), assumed=True)


UNCHANGED = Changes()


def with_strides(strides: tuple[int, ...]) -> dict[str, Any]:
    """Returns the fields of an `XCiTConfig` for these stem strides: `patch_size` and `stem_strides`."""
    return {"patch_size": 2 ** len(strides), "stem_strides": strides}


def with_channels(state: Mapping[str, Tensor], in_channels: int) -> Mapping[str, Tensor]:
    """Adapts the first convolution in a state dict to images with another number of channels, as timm does.

    For one channel, the weights are summed over the channels. For any other number of channels, the weights are
    repeated over the channels and multiplied by (old number / new number), so that the outputs keep their scale.
    """
    name = next((name for name in state if name == _STEM or name.endswith(f".{_STEM}")), None)
    if name is None or state[name].ndim != 4 or state[name].shape[1] == in_channels:
        return state
    weight = state[name].float()
    channels = weight.shape[1]
    if in_channels == 1:
        adapted = weight.sum(dim=1, keepdim=True)
    else:
        adapted = weight[:, torch.arange(in_channels) % channels] * (channels / in_channels)
    return {**state, name: adapted.to(state[name].dtype)}


def _normalization(spec: Any, in_channels: int) -> dict[str, Any]:
    """Returns `mean` and `std` for another number of channels: averaged for one channel, else repeated."""

    def fitted(values: tuple[float, ...]) -> tuple[float, ...]:
        if in_channels == 1:
            return (sum(values) / len(values),)
        return tuple(values[index % len(values)] for index in range(in_channels))

    return {name: fitted(getattr(spec, name)) for name in ("mean", "std") if hasattr(spec, name)}
