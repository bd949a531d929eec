"""Semantic segmentation: UperNet (arXiv 1807.10221) and Semantic FPN (arXiv 1901.02446) on XCiT's pyramid.

The heads are those of the published checkpoints. Every resize goes to the size of the map it meets, without aligned
corners, for the maps of an image whose sides are no multiples of 32 are no exact halves of each other.

Shapes: `B` batch, `D` width of the backbone, `E` channels of the head, `K` classes; maps are (B, channels, height,
width), of strides 4, 8, 16 and 32.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.models.config import XCiTConfig
from xcit.models.first_values import reset_within
from xcit.models.fused import norm_line, tokens_at_once, with_numbers
from xcit.models.hosts import ReadableConfig, keeps_notes
from xcit.models.info import SegmenterInfo
from xcit.models.map_rows import MapRows, TensorRows, as_image, rows_of_a_stripe
from xcit.models.plain import is_all_plain, is_plain, is_watched
from xcit.models.pyramid import STRIDES, OnPyramid, XCiTPyramid
from xcit.models.pyramid_rows import is_plain_pyramid, pyramid_rows
from xcit.models.segmentation_rows import averaging, pooled_means, semantic_fpn_rows, upernet_rows
from xcit.models.stripes import spans
from xcit.models.xcit import FusedXCiT

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
            if getattr(self, name) < least:
                raise XCiTError(f"SegmenterConfig: {name} is {getattr(self, name)}, must be at least {least}")
        if self.kind not in ("upernet", "sem-fpn"):
            raise XCiTError(f"SegmenterConfig: kind is {self.kind!r}, must be 'upernet' or 'sem-fpn'")
        if self.backbone.cls_depth or self.backbone.num_classes:
            raise XCiTError("SegmenterConfig: the backbone has class attention or a classifier: set both to 0")
        if not 0 <= self.dropout < 1:
            raise XCiTError(f"SegmenterConfig: dropout is {self.dropout}, must be in [0, 1)")


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
    height, width = (averaging(side, size, image) for side in image.shape[-2:])
    return height @ image @ width.mT


class ConvNormReLU(nn.Module):
    """A convolution that keeps the size, without bias, then batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(image)))

    def fold_norm(self) -> None:
        """Makes the norm a part of the convolution, for inference alone.

        Where one of the two is replaced, hooked or parametrised, both stay as they are, and are called.
        """
        if is_plain(self.conv) and isinstance(self.norm, nn.BatchNorm2d) and is_all_plain(self.norm, (nn.BatchNorm2d,)):
            scale, shift = norm_line(self.norm)
            self.conv = with_numbers(self.conv, self.conv.weight * scale.view(-1, 1, 1, 1), shift)
            self.norm = nn.Identity().train(self.training)


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
        pool_sizes: pixels a side of the maps that the head pools the coarsest map to.
    """

    pool_sizes: tuple[int, ...] = ()

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
        size = images.shape[-2:]
        if not with_auxiliary and isinstance(images, Tensor) and self.goes_by_rows and tokens_at_once(images):
            return resize_bilinear(torch.cat([whole_map(rows) for rows in self.logit_rows(images)]), size)
        maps = self.backbone(images)
        logits = resize_bilinear(self.decode(maps), size)
        if not with_auxiliary:
            return logits
        auxiliary = self.decode_auxiliary(maps)
        return SegmenterOutput(logits, None if auxiliary is None else resize_bilinear(auxiliary, size))

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, ...) of stride 4 from the pyramid's maps."""
        raise NotImplementedError

    def fuse(self) -> Self:
        """A copy for inference: see `OnPyramid.fuse`; the norms of the head are folded as well.

        Its maps are made and used a few rows at a time, where no part of it is replaced, hooked or parametrised.
        """
        fused = super().fuse()
        for module in fused.modules():
            if type(module) is ConvNormReLU:
                module.fold_norm()
        return fused

    @property
    def goes_by_rows(self) -> bool:
        """Whether `rows` gives what a call gives: it is fused, and nobody would miss a call of its parts."""
        parts = (part for name, part in self.named_children() if name not in ("backbone", "auxiliary"))
        return (
            isinstance(self.backbone.xcit, FusedXCiT)
            and not is_watched(self.backbone)
            and is_plain_pyramid(self.backbone.pyramid)
            and all(is_all_plain(part, _LAYERS) for part in parts)
        )

    def rows(self, taps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        """Logits of stride 4, by rows, of one image of any size; see `goes_by_rows`.

        Args:
            taps: its tokens (H, W, D) after the four blocks of the backbone.
            pooled: what `pool` gives of them.
        """
        return self.decode_rows(pyramid_rows(self.backbone.pyramid, taps), pooled)

    def pool(self, taps: Sequence[MapRows], rows_at_once: int) -> list[Tensor]:
        """What the head has to know of the whole image before it goes by rows, by one pass: means (n, n, D)."""
        if not self.pool_sizes:
            return []
        return pooled_means(pyramid_rows(self.backbone.pyramid, taps)[-1], self.pool_sizes, rows_at_once)

    def decode_rows(self, maps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        """`decode` of one image's maps, by rows."""
        raise NotImplementedError

    @torch.no_grad()
    def logit_rows(self, images: Tensor) -> list[MapRows]:
        """Logits of stride 4 of images (B, in_channels, H, W) that fit into memory, by rows: a map an image."""
        xcit, indices = self.backbone.xcit, self.backbone.out_indices
        assert isinstance(xcit, FusedXCiT)
        tokens = xcit.forward_intermediates(images, indices, output_fmt="NLC", intermediates_only=True)
        by_block = dict(zip(sorted(set(indices)), cast(list[Tensor], tokens), strict=True))
        grid = xcit.embedding.grid(images.shape[2], images.shape[3])
        found = []
        for index in range(len(images)):
            taps = [TensorRows(by_block[block][index].unflatten(0, grid)) for block in indices]
            found.append(self.rows(taps, self.pool(taps, grid[0])))
        return found

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

    pool_sizes = POOL_SIZES

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        dim, num_classes = config.backbone.embed_dim, config.num_classes
        self.head = UperNetHead(dim, config.channels, num_classes, config.dropout)
        self.auxiliary = AuxiliaryHead(dim, config.auxiliary_channels, num_classes, config.dropout)
        self._init_parts()

    def decode(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.head(maps)
        return logits

    def decode_rows(self, maps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        return upernet_rows(self.head, maps, pooled)

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

    def decode_rows(self, maps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        return semantic_fpn_rows(self.neck, self.head, maps)


_LAYERS = frozenset(
    {UperNetHead, FPNNeck, SemanticFPNHead, ConvNormReLU, nn.ModuleList, nn.Conv2d, nn.Identity, nn.Dropout2d}
)
"""Of what a fused segmenter that goes by rows consists, beside its backbone."""


def whole_map(rows: MapRows) -> Tensor:
    """A map that is read by rows as an image (1, channels, height, width), a few rows at a time."""
    found: Tensor | None = None
    for start, end in spans(rows.height, rows_of_a_stripe(rows)):
        part = as_image(rows.read(start, end))
        if found is None:
            found = part.new_empty(1, rows.channels, rows.height, rows.width)
        found[:, :, start:end] = part
    assert found is not None
    return found


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """The segmenter of a config, with random weights."""
    return UperNet(config) if config.kind == "upernet" else SemanticFPN(config)
