"""Registers our backbones with mmengine, so that mmpretrain, mmsegmentation and mmdetection can use them.

A config of these libraries contains, for example:

    custom_imports = dict(imports=["xcit.integrations.mmengine"])
    model = dict(backbone=dict(type="XCiTPyramidBackbone", arch="small-12-p16", pretrained=True), ...)

The backbones are in mmengine's root registry, which the registries of these libraries search too. A backbone loads and
checks its weights when it is built. A later call of `init_weights` for the whole model does not change these weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models import XCiT, XCiTConfig, XCiTPyramid
from xcit.models.xcit import OutType
from xcit.zoo import get_backbone, get_xcit
from xcit.zoo.architectures import ARCHITECTURES, backbone_of
from xcit.zoo.names import find_record

try:
    from mmengine.registry import MODELS
except ModuleNotFoundError:
    raise XCiTError("xcit.integrations.mmengine needs mmengine: pip install mmengine") from None


class XCiTBackbone(nn.Module):
    """An XCiT backbone for mmpretrain's classifiers, and for necks and heads that accept maps of a single stride.

    Shapes: `B` images, `D` width of the model, `H` x `W` token grid, `N` tokens.

    Args:
        arch: an architecture ("small-12-p16"), or the name of a model in `xcit list`.
        out_type: "cls_token" (B, D), for mmpretrain's linear head; "featmap" (B, D, H, W); "avg_featmap" (B, D);
            "raw" (B, N, D), with the class token if there is one.
        out_indices: numbers (from 0) of the blocks whose outputs are returned. The class attention blocks are numbered
            after the XCA blocks; negative numbers count from the end. If only XCA blocks are requested, all blocks
            after the last requested block are removed.
        pretrained: true for the published weights of `arch`, or the path or URL of a file in any published format. None
            and false mean random weights.
        init_cfg: `dict(type="Pretrained", checkpoint=...)`, another way to give the path or URL of the weights.
        in_channels: number of channels of the images; None means the number of `arch`. With pretrained weights, no
            other number is possible.
        drop_path_rate: rate of stochastic depth in training.
        frozen: whether the XCiT is not trained and stays in evaluation mode.
        norm_eval: whether the batch norms stay in evaluation mode during training, so that their running statistics do
            not change. This is useful for small batches.
        with_cp: whether to use gradient checkpointing: blocks are computed again in the backward pass to save memory.

    Raises:
        XCiTError: if the name is unknown, if the weights can't be loaded or do not fit the architecture, or if
            `out_type` is "cls_token" and a block in `out_indices` has no class token.
    """

    def __init__(
        self,
        *,
        arch: str = "small-12-p16",
        out_type: OutType = "cls_token",
        out_indices: int | Sequence[int] = (-1,),
        pretrained: bool | str | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        in_channels: int | None = None,
        drop_path_rate: float = 0.0,
        frozen: bool = False,
        norm_eval: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        name, source = _name(arch), _weights(pretrained, init_cfg)
        config = _shape(name, source, in_channels, drop_path_rate)
        self.out_type = out_type
        self.out_indices = _blocks(out_indices, config.depth + config.cls_depth)
        if out_type not in get_args(OutType):
            raise XCiTError(f"out_type is {out_type!r}, but must be one of {', '.join(get_args(OutType))}")
        if out_type == "cls_token" and self.out_indices[0] < config.depth:
            raise XCiTError(
                f"block {self.out_indices[0]} has no class token: the class token enters at block {config.depth}; use "
                "another out_type"
            )
        needs_class_attention = max(self.out_indices) >= config.depth
        self.xcit = XCiT(replace(config, num_classes=0) if needs_class_attention else backbone_of(config))
        if source is not False:
            loaded = get_xcit(name, source, num_classes=0) if needs_class_attention else get_backbone(name, source)
            self.xcit.load_state_dict(loaded.state_dict())
        if not needs_class_attention:
            self.xcit.prune_intermediate_layers(self.out_indices)
        self.frozen, self.norm_eval = frozen, norm_eval
        self.xcit.requires_grad_(not frozen)
        self.xcit.set_grad_checkpointing(with_cp)
        self.train()

    def train(self, mode: bool = True) -> "XCiTBackbone":
        """Sets training or evaluation mode. Frozen parts, and batch norms with `norm_eval`, stay in evaluation mode."""
        super().train(mode)
        _hold(self.xcit, self.frozen, self.norm_eval)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps normalised images (B, in_channels, h, w) to a tensor per block in `out_indices`, in ascending order."""
        features = self.xcit.extract_feat(images, "backbone", out_type=self.out_type, out_indices=self.out_indices)
        assert isinstance(features, tuple)
        return features


class XCiTPyramidBackbone(XCiTPyramid):
    """The backbone of the published detectors and segmenters. It returns four maps, with strides 4, 8, 16 and 32.

    Each map has D channels, where D is the width of the model. So a neck or head needs `in_channels=[D, D, D, D]`.

    Args:
        arch: an architecture ("small-12-p16"), or the name of a model in `xcit list`. The model may be a segmenter or a
            detector.
        out_indices: numbers (from 0) of the four blocks whose tokens become the maps; None means the paper's blocks.
        pretrained: see `XCiTBackbone`. Weights of a segmenter or detector include the layers that resize the maps. With
            other weights, these layers get random weights.
        init_cfg: see `XCiTBackbone`.
        in_channels: see `XCiTBackbone`.
        drop_path_rate: see `XCiTBackbone`.
        frozen: see `XCiTBackbone`; the layers that resize the maps are still trained.
        norm_eval: see `XCiTBackbone`.
        with_cp: see `XCiTBackbone`.

    Raises:
        XCiTError: if the name is unknown, if the weights can't be loaded or do not fit the architecture, or if
            `out_indices` are not the numbers of four blocks.
    """

    def __init__(
        self,
        *,
        arch: str = "small-12-p16",
        out_indices: Sequence[int] | None = None,
        pretrained: bool | str | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        in_channels: int | None = None,
        drop_path_rate: float = 0.0,
        frozen: bool = False,
        norm_eval: bool = False,
        with_cp: bool = False,
    ) -> None:
        name, source = _name(arch), _weights(pretrained, init_cfg)
        super().__init__(backbone_of(_shape(name, source, in_channels, drop_path_rate)), out_indices)
        if source is not False:
            loaded = get_backbone(name, source, pyramid=True, out_indices=out_indices)
            self.load_state_dict(loaded.state_dict())
        self.frozen, self.norm_eval = frozen, norm_eval
        self.xcit.requires_grad_(not frozen)
        self.set_grad_checkpointing(with_cp)
        self.train()

    def train(self, mode: bool = True) -> "XCiTPyramidBackbone":
        """Sets training or evaluation mode. Frozen parts, and batch norms with `norm_eval`, stay in evaluation mode."""
        super().train(mode)
        _hold(self.xcit, self.frozen, self.norm_eval)
        return self


def _name(arch: str) -> str:
    return f"xcit-{arch}" if arch in ARCHITECTURES else arch


def _weights(pretrained: bool | str | None, init_cfg: Mapping[str, Any] | None) -> bool | str:
    """Returns the weights to load: true for the published weights, a path or URL, or false for random weights."""
    if init_cfg is None:
        return False if pretrained is None else pretrained
    if set(init_cfg) != {"type", "checkpoint"} or init_cfg["type"] != "Pretrained":
        raise XCiTError(
            f"init_cfg is {dict(init_cfg)}: a backbone of xcit accepts only dict(type='Pretrained', checkpoint=...)"
        )
    if pretrained:
        raise XCiTError(f"two sources of weights were given: pretrained {pretrained} and init_cfg {dict(init_cfg)}")
    checkpoint: str = init_cfg["checkpoint"]
    return checkpoint


def _shape(name: str, source: bool | str, in_channels: int | None, drop_path_rate: float) -> XCiTConfig:
    config = find_record(name).backbone
    if in_channels is not None and in_channels != config.in_channels:
        if source is not False:
            raise XCiTError(
                f"{name}: the weights are for {config.in_channels} channels, not {in_channels}: leave out pretrained"
            )
        config = replace(config, in_channels=in_channels)
    return replace(config, drop_path_rate=drop_path_rate)


def _blocks(out_indices: int | Sequence[int], num_blocks: int) -> list[int]:
    """Returns the block numbers counted from 0, sorted and without duplicates."""
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    if not indices or not all(-num_blocks <= index < num_blocks for index in indices):
        raise XCiTError(f"out_indices is {out_indices}: the model has {num_blocks} blocks, counted from 0")
    return sorted({index % num_blocks for index in indices})


def _hold(xcit: XCiT, frozen: bool, norm_eval: bool) -> None:
    """Sets the XCiT to evaluation mode if `frozen` is true, or only its batch norms if only `norm_eval` is true."""
    if frozen:
        xcit.eval()
    elif norm_eval:
        for module in xcit.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


for _class in (XCiTBackbone, XCiTPyramidBackbone):
    MODELS.register_module(module=_class)
