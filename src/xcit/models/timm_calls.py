"""The attributes and methods that timm's tools expect of a model: widths, layers, classifier, preprocessing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from xcit.errors import XCiTError
from xcit.images.preprocess import Preprocessing
from xcit.models.config import GlobalPool, XCiTConfig
from xcit.models.info import ModelInfo
from xcit.models.layers import init_linear

_POOL_SYNONYMS: dict[str, GlobalPool] = {"cls": "cls", "avg": "avg", "none": "none", "token": "cls", "": "none"}
"""Maps the names of `GlobalPool`, and timm's names, to `GlobalPool`."""


class TimmCalls(nn.Module):
    """timm's names for the parts of an `XCiT`; the class `XCiT` itself has the config, the layers and the passes."""

    config: XCiTConfig
    info: ModelInfo | None
    blocks: nn.ModuleList
    head: nn.Module
    norm: nn.Module
    grad_checkpointing: bool
    _pretrained_cfg: dict[str, Any] | None

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.config.in_channels

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 without one."""
        return self.config.num_classes

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return self.config.embed_dim

    @property
    def num_features(self) -> int:
        """Width of the feature that the head reads: D."""
        return self.config.embed_dim

    @property
    def head_hidden_size(self) -> int:
        """Width of the input of the head: D."""
        return self.config.embed_dim

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches in `forward_features`: the class token, if there is one."""
        return 1 if self.config.cls_depth else 0

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Width, stride and module name of the output of `forward_intermediates` after each XCA block."""
        config = self.config
        return [
            {"num_chs": config.embed_dim, "reduction": config.patch_size, "module": f"blocks.{index}"}
            for index in range(config.depth)
        ]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing of images in timm's format; a program may set it."""
        if self._pretrained_cfg is not None:
            return self._pretrained_cfg
        found: dict[str, Any] = {"num_classes": self.num_classes, "first_conv": "stem.0.conv", "classifier": "head"}
        if self.info is not None:
            found |= {"architecture": self.info.name} | data_config(self.info.preprocessing, self.config.in_channels)
        return found

    @pretrained_cfg.setter
    def pretrained_cfg(self, value: dict[str, Any]) -> None:
        self._pretrained_cfg = value

    default_cfg = pretrained_cfg

    def no_weight_decay(self) -> set[str]:
        """Returns the class token: apart from vectors, the only parameter without weight decay in the authors' code."""
        return {"cls_token"} if self.config.cls_depth else set()

    def get_classifier(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what `forward_intermediates` does not need for these blocks; returns the blocks as indices from 0.

        Args:
            indices: an int means the last n blocks; negative indices count from the end.
            prune_norm: replace the final norm by an identity.
            prune_head: remove class token, class attention and head.
        """
        depth = self.config.depth
        take = resolve_indices(range(depth - indices, depth) if isinstance(indices, int) else indices, depth)
        self.blocks = self.blocks[: max(take) + 1]
        self.config = replace(self.config, depth=len(self.blocks))
        if prune_norm and self.config.cls_depth:
            self.norm = nn.Identity()
        if prune_head:
            if self.config.cls_depth:
                del self.cls_token, self.cls_blocks
            self.config = replace(self.config, cls_depth=0, global_pool="none")
            self.reset_classifier(0)
        return take

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations (timm's name)."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, tuple[int, ...] | None]]]:
        """Returns patterns of parameter names, ordered by layer, for layer-wise learning-rate decay (timm's call).

        The stem, the position code and the class token form the first layer, then each block is a layer, and the head
        is the last layer. The final norm belongs to the last block. `coarse` changes nothing, because there are no
        larger stages.
        """
        layer_before = (99999,)  # in timm this means "belongs to the layer before"
        return {
            "stem": r"^(?:stem|position|cls_token)",
            "blocks": r"^blocks\.(\d+)",
            "cls_blocks": [(r"^cls_blocks\.(\d+)", None), (r"^norm", layer_before)],
        }

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head, and the pooling if given (timm's call, so "token" and "" are accepted too)."""
        pool = self.config.global_pool if global_pool is None else pool_of(global_pool)
        self.config = replace(self.config, num_classes=num_classes, global_pool=pool)
        reference = next(self.parameters())
        self.head = self._new_head().to(device=reference.device, dtype=reference.dtype)
        if isinstance(self.head, nn.Linear):
            init_linear(self.head)
        self.head.train(self.training)
        if self.info is not None:
            self.info = replace(self.info, class_names=(), class_ids=(), is_multi_label=False)

    def _new_head(self) -> nn.Module:
        config = self.config
        return nn.Linear(config.embed_dim, config.num_classes) if config.num_classes else nn.Identity()


def data_config(spec: Preprocessing, channels: int) -> dict[str, Any]:
    """Returns the preprocessing under the names of timm's `PretrainedCfg`."""
    is_cropped = spec.resize == "short_side"
    return {
        "input_size": (channels, spec.image_size, spec.image_size),
        "interpolation": "bicubic",
        "crop_pct": _crop_share(spec.image_size, spec.resize_to) if is_cropped else 1.0,
        "crop_mode": "center" if is_cropped else "squash",
        "mean": spec.mean,
        "std": spec.std,
    }


def _crop_share(image_size: int, resize_to: int) -> float:
    """Returns timm's `crop_pct`, from which timm computes the short side as floor(image_size / crop_pct)."""
    share = image_size / resize_to
    return share if math.floor(image_size / share) == resize_to else image_size / (resize_to + 1e-4)


def pool_of(name: str) -> GlobalPool:
    """Returns a pooling by its name, ours or timm's.

    Raises:
        XCiTError: if the name is unknown.
    """
    if name not in _POOL_SYNONYMS:
        raise XCiTError(f"global_pool is {name!r}, must be 'cls', 'avg' or 'none'")
    return _POOL_SYNONYMS[name]


def resolve_indices(indices: Sequence[int], num_blocks: int) -> list[int]:
    """Returns block indices from 0, sorted and without duplicates; negative indices count from the end."""
    if not indices:
        raise XCiTError("no block was asked for: the list of indices is empty")
    for index in indices:
        if not -num_blocks <= index < num_blocks:
            raise XCiTError(f"there is no block {index}: the model has {num_blocks}, counted from 0")
    return sorted({index % num_blocks for index in indices})
