"""Semantic segmentation: UperNet (arXiv 1807.10221) and Semantic FPN (arXiv 1901.02446) on XCiT's pyramid.

The heads are those of the published checkpoints. Every resize goes to the size of the map it meets, without aligned
corners, for the maps of an image whose sides are no multiples of 32 are no exact halves of each other.

Shapes: `B` batch, `D` width of the backbone, `E` channels of the head, `K` classes; maps are (B, channels, height,
width), of strides 4, 8, 16 and 32.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError, check_field
from xcit.models.config import XCiTConfig
from xcit.models.first_values import reset_within
from xcit.models.hosts import ReadableConfig, keeps_notes
from xcit.models.info import SegmenterInfo
from xcit.models.pyramid import STRIDES, OnPyramid, XCiTPyramid

SegmenterKind = Literal["upernet", "sem-fpn"]

POOL_SIZES = (1, 2, 3, 6)
"""Pixels a side of the maps that UperNet pools the coarsest one to."""


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ReadableConfig):
    """Shape of a segmenter.

    Attributes:
        kind: the head.
        backbone: an XCiT without class attention and classifier.
        num_classes: K; 0 where the data decide.
        channels: E: 512 of the published UperNet, 128 of the published Semantic FPN.
        auxiliary_channels: of UperNet's auxiliary head.
        dropout: share of a head's channels that are left out in training.
        out_indices: the blocks that make the pyramid; none takes `default_out_indices`.

    Raises:
        XCiTError: if a field has an impossible value.
    """

    kind: SegmenterKind
    backbone: XCiTConfig
    num_classes: int = 150
    channels: int = 512
    auxiliary_channels: int = 256
    dropout: float = 0.1
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_classes", 0), ("channels", 1), ("auxiliary_channels", 1)):
            check_field(self, name, getattr(self, name) >= least, f"at least {least}")
        if self.kind not in ("upernet", "sem-fpn"):
            raise XCiTError(f"SegmenterConfig: kind is {self.kind!r}, must be 'upernet' or 'sem-fpn'")
        if self.backbone.cls_depth or self.backbone.num_classes:
            raise XCiTError("SegmenterConfig: the backbone has class attention or a classifier: set both to 0")
        check_field(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")


class SegmenterOutput(NamedTuple):
    """What a segmenter gives to train on, both at the images' size."""

    logits: Tensor  # (B, K, H, W)
    auxiliary: Tensor | None  # likewise, of the auxiliary head if there is one


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """(B, channels, height, width) to another size, without aligned corners."""
    return F.interpolate(image, tuple(size), mode="bilinear", align_corners=False)


def pool_to(image: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of (B, channels, height, width) to `size` pixels a side."""
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(image, size)
    # ONNX has no adaptive pooling: its exporter would write down the windows of the example's size.
    height, width = (_averaging(side, size, image) for side in image.shape[-2:])
    return height @ image @ width.mT


def _averaging(length: int, num_windows: int, like: Tensor) -> Tensor:
    """The matrix (num_windows, length) that averages over the windows of adaptive pooling."""
    position = torch.arange(length, device=like.device)
    window = torch.arange(num_windows, device=like.device)[:, None]
    start, end = window * length // num_windows, ((window + 1) * length + num_windows - 1) // num_windows
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class ConvNormReLU(nn.Module):
    """A convolution that keeps the size, without bias, then batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(image)))


class UperNetHead(nn.Module):
    """Four maps (B, D, ...) to logits (B, K, ...) of stride 4: pooled context, a top-down path, and their fusion."""

    def __init__(self, embed_dim: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pools = nn.ModuleList(ConvNormReLU(embed_dim, channels, 1) for _ in POOL_SIZES)
        self.bottleneck = ConvNormReLU(embed_dim + len(POOL_SIZES) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvNormReLU(embed_dim, channels, 1) for _ in STRIDES[:-1])
        self.smooths = nn.ModuleList(ConvNormReLU(channels, channels, 3) for _ in STRIDES[:-1])
        self.fusion = ConvNormReLU(len(STRIDES) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [lateral(map) for lateral, map in zip(self.laterals, maps, strict=False)]
        levels.append(self._pooled(maps[-1]))
        for i in reversed(range(1, len(levels))):
            levels[i - 1] = levels[i - 1] + resize_bilinear(levels[i], levels[i - 1].shape[-2:])
        smoothed = [smooth(level) for smooth, level in zip(self.smooths, levels, strict=False)]
        finest = smoothed[0].shape[-2:]
        fused = self.fusion(
            torch.cat([smoothed[0], *(resize_bilinear(level, finest) for level in [*smoothed[1:], levels[-1]])], dim=1)
        )
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits

    def _pooled(self, coarsest: Tensor) -> Tensor:
        """The coarsest map beside what it holds on the whole, as levels (B, E, ...)."""
        context = [
            resize_bilinear(pool(pool_to(coarsest, size)), coarsest.shape[-2:])
            for pool, size in zip(self.pools, POOL_SIZES, strict=True)
        ]
        level: Tensor = self.bottleneck(torch.cat([coarsest, *context], dim=1))
        return level


class AuxiliaryHead(nn.Module):
    """One map (B, D, ...) to logits (B, K, ...) of its size: a second loss, near the backbone, for training alone."""

    def __init__(self, embed_dim: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNormReLU(embed_dim, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.conv(image)))
        return logits


class FPNNeck(nn.Module):
    """Four maps (B, D, ...) to four of the same shapes, each with what the coarser ones know (arXiv 1612.03144)."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 1) for _ in STRIDES)
        self.smooths = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in STRIDES)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(map) for lateral, map in zip(self.laterals, maps, strict=True)]
        for i in reversed(range(1, len(levels))):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooths, levels, strict=True)]


class SemanticFPNHead(nn.Module):
    """Four maps (B, D, ...) to logits (B, K, ...) of stride 4: each is doubled up to that stride, then they are added.

    A level has a convolution before each doubling; the finest has one and none.
    """

    def __init__(self, embed_dim: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(ConvNormReLU(channels if i else embed_dim, channels, 3) for i in range(max(1, num_doublings)))
            for num_doublings in range(len(STRIDES))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        for convs, level in zip(self.levels, maps, strict=True):
            assert isinstance(convs, nn.ModuleList)
            for conv in convs:
                level = conv(level)
                if total is not None:  # all but the finest
                    level = resize_bilinear(level, [2 * side for side in level.shape[-2:]])
            total = level if total is None else total + resize_bilinear(level, total.shape[-2:])
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


class Segmenter(OnPyramid):
    """Normalised images (B, in_channels, H, W), of any size from one patch up, to logits (B, K, H, W).

    Attributes:
        config: its shape.
        info: class names and preprocessing where they are known, else none.
        backbone: the XCiT and its pyramid.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise XCiTError("a segmenter needs classes: set num_classes above 0")
        self.config = copy.copy(config)  # what a host writes on it stays with this model
        self.info: SegmenterInfo | None = None
        self.backbone = XCiTPyramid(config.backbone, config.out_indices)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.config.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces what gives the logits by new layers for another number of classes."""
        config = replace(self.config, num_classes=num_classes)
        fresh = build_segmenter(config)
        reference = next(self.parameters())
        for name, module in list(fresh.named_modules()):
            if name.endswith("classifier"):
                parent = self.get_submodule(name.rpartition(".")[0])
                parent.classifier = module.to(device=reference.device, dtype=reference.dtype)
        self.train(self.training)
        self.config = config
        if self.info is not None:
            self.info = replace(self.info, class_names=())

    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor | SegmenterOutput:
        """Logits (B, K, H, W); with those of the auxiliary head if asked for them."""
        size, maps = images.shape[-2:], self.backbone(images)
        logits = resize_bilinear(self.decode(maps), size)
        if not with_auxiliary:
            return logits
        auxiliary = self.decode_auxiliary(maps)
        return SegmenterOutput(logits, None if auxiliary is None else resize_bilinear(auxiliary, size))

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, ...) of stride 4 from the pyramid's maps."""
        raise NotImplementedError

    def decode_auxiliary(self, maps: Sequence[Tensor]) -> Tensor | None:
        """Logits (B, K, ...) of the auxiliary head, if there is one."""
        return None

    def reset_parameters(self) -> None:
        """First values as at construction, random and all: what is learned is lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        """Convolutions from a normal that keeps the variance of gradients, classifiers from one of 0.01, biases 0."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Conv2d) or name.startswith("backbone."):
                continue
            if name.endswith("classifier"):
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class UperNet(Segmenter):
    """UperNet, with its auxiliary head on the map of stride 16."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        dim, num_classes = config.backbone.embed_dim, config.num_classes
        self.head = UperNetHead(dim, config.channels, num_classes, config.dropout)
        self.auxiliary = AuxiliaryHead(dim, config.auxiliary_channels, num_classes, config.dropout)
        self._init_parts()

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(maps)
        return logits

    def decode_auxiliary(self, maps: Sequence[Tensor]) -> Tensor | None:
        logits: Tensor = self.auxiliary(maps[2])
        return logits


class SemanticFPN(Segmenter):
    """Semantic FPN: a feature pyramid network as neck, and a light head."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        dim = config.backbone.embed_dim
        self.neck = FPNNeck(dim)
        self.head = SemanticFPNHead(dim, config.channels, config.num_classes, config.dropout)
        self._init_parts()

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(self.neck(maps))
        return logits


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """The segmenter of a config, with random weights."""
    return UperNet(config) if config.kind == "upernet" else SemanticFPN(config)
