"""The attributes and methods that timm's tools use on a model: widths, layers, classifier, preprocessing."""

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
"""Maps each accepted name of a pooling, including timm's "token" and "", to a `GlobalPool`."""


class TimmCalls(nn.Module):
    """Base class of `XCiT` with timm's attributes and methods. The layers and `forward` are in `XCiT` itself."""

    config: XCiTConfig
    info: ModelInfo | None
    blocks: nn.ModuleList
    head: nn.Module
    norm: nn.Module
    grad_checkpointing: bool
    _pretrained_cfg: dict[str, Any] | None

    @property
    def in_chans(self) -> int:
        """Number of channels of the images."""
        return self.config.in_channels

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 0 if there is no head."""
        return self.config.num_classes

    @property
    def embed_dim(self) -> int:
        """Width D of the tokens."""
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
        """Number of tokens before the patch tokens in `forward_features`: 1 if there is a class token, else 0."""
        return 1 if self.config.cls_depth else 0

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Number of channels, stride in pixels and module name of each XCA block, in timm's format."""
        config = self.config
        return [
            {"num_chs": config.embed_dim, "reduction": config.patch_size, "module": f"blocks.{index}"}
            for index in range(config.depth)
        ]

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing of images, and the names of two layers, in timm's format. This property can be set."""
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
        """Returns the names of parameters without weight decay: the class token, if there is one.

        In the authors' code, biases and other one-dimensional parameters have no weight decay either. Their names are
        not returned, because timm's optimizers recognise them by their shape.
        """
        return {"cls_token"} if self.config.cls_depth else set()

    def get_classifier(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the layers that `forward_intermediates` does not need for the given blocks.

        Args:
            indices: indices of XCA blocks; negative indices count from the end. A number n instead of a sequence means
                the last n blocks.
            prune_norm: whether to replace the final norm with an identity.
            prune_head: whether to remove the class token, the class attention and the head.

        Returns:
            The indices of the blocks, counted from 0, in rising order.
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
        """Turns gradient checkpointing on or off (timm's method name).

        If it is on, the activations of each block are not stored, but recomputed in the backward pass.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list[tuple[str, tuple[int, ...] | None]]]:
        """Returns patterns of parameter names, ordered by layer, for layer-wise learning-rate decay in timm.

        The first layer consists of the stem, the position code and the class token. Then each block is a layer. The
        head is the last layer. The final norm belongs to the last block. `coarse` has no effect, because the model has
        no stages of several blocks.
        """
        layer_before = (99999,)  # in timm, this number means that the parameter belongs to the previous layer
        return {
            "stem": r"^(?:stem|position|cls_token)",
            "blocks": r"^blocks\.(\d+)",
            "cls_blocks": [(r"^cls_blocks\.(\d+)", None), (r"^norm", layer_before)],
        }

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head with a new head, and changes the pooling if `global_pool` is given.

        Args:
            num_classes: number of classes of the new head; 0 means no head.
            global_pool: as in `XCiTConfig`, or timm's names "token" (for "cls") and "" (for "none").
        """
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
    """Converts a preprocessing to a dictionary with the field names of timm's `PretrainedCfg`."""
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
    """Returns timm's `crop_pct`.

    From this value, timm computes the short side of the resized image as floor(image_size / crop_pct).
    """
    share = image_size / resize_to
    return share if math.floor(image_size / share) == resize_to else image_size / (resize_to + 1e-4)


def pool_of(name: str) -> GlobalPool:
    """Converts the name of a pooling to a `GlobalPool`. The names of timm are accepted too.

    Raises:
        XCiTError: if the name is unknown.
    """
    if name not in _POOL_SYNONYMS:
        raise XCiTError(f"global_pool is {name!r}, but must be 'cls', 'avg' or 'none'")
    return _POOL_SYNONYMS[name]


def resolve_indices(indices: Sequence[int], num_blocks: int) -> list[int]:
    """Converts indices of blocks to indices counted from 0, sorted and without duplicates.

    Negative indices count from the end.

    Raises:
        XCiTError: if `indices` is empty or contains an index that the model does not have.
    """
    if not indices:
        raise XCiTError("no block was asked for: the list of indices is empty")
    for index in indices:
        if not -num_blocks <= index < num_blocks:
            raise XCiTError(f"there is no block {index}: the model has {num_blocks} blocks, counted from 0")
    return sorted({index % num_blocks for index in indices})
