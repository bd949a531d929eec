"""Semantic segmentation: UperNet (arXiv 1807.10221) and Semantic FPN (arXiv 1901.02446) on XCiT's pyramid.

The heads are those of the published checkpoints. Before two maps are added or concatenated, one is resized to the exact
size of the other. Doubling the size would not be enough: if the sides of an image are not multiples of 32, the sides of
a map are not exactly half the sides of the next finer map. Bilinear interpolation uses `align_corners=False`.

Shapes: `B` batch, `D` width of the backbone, `E` channels of the head, `K` classes. Maps are (B, channels, height,
width), of strides 4, 8, 16 and 32.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.errors import XCiTError, check_field
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
"""Sizes, in pixels per side, to which UperNet pools the coarsest map."""


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ReadableConfig):
    """Architecture of a segmenter.

    Attributes:
        kind: type of the head, "upernet" or "sem-fpn".
        backbone: config of an XCiT without class attention and without classifier.
        num_classes: number of classes K; 0 means that training sets it to the number of classes of the data set.
        channels: number of channels E of the head: 512 in the published UperNet, 128 in the published Semantic FPN.
        auxiliary_channels: number of channels of UperNet's auxiliary head.
        dropout: probability with which a channel of a head is dropped in training.
        out_indices: indices of the four blocks that output the tokens for the pyramid's maps; None means
            `default_out_indices`.

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
            raise XCiTError(f"SegmenterConfig: kind is {self.kind!r}, but must be 'upernet' or 'sem-fpn'")
        if self.backbone.cls_depth or self.backbone.num_classes:
            raise XCiTError(
                "SegmenterConfig: the backbone has class attention or a classifier: set the backbone's cls_depth and "
                "num_classes to 0"
            )
        check_field(self, "dropout", 0 <= self.dropout < 1, "in [0, 1)")


class SegmenterOutput(NamedTuple):
    """The outputs of a segmenter for training. Both outputs have the height and width of the images."""

    logits: Tensor  # (B, K, H, W)
    auxiliary: Tensor | None  # logits of the auxiliary head, (B, K, H, W), or None if the model has no such head


def resize_bilinear(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps (B, channels, height, width) to `size` by bilinear interpolation with `align_corners=False`."""
    return F.interpolate(image, tuple(size), mode="bilinear", align_corners=False)


def pool_to(image: Tensor, size: int) -> Tensor:
    """Computes adaptive average pooling of maps (B, channels, height, width) to `size` pixels per side."""
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(image, size)
    # ONNX has no adaptive pooling. The ONNX exporter would write pooling windows of constant size, which are right only
    # for images of the size of the example.
    height, width = (averaging(side, size, image) for side in image.shape[-2:])
    return height @ image @ width.mT


class ConvNormReLU(nn.Module):
    """A convolution without bias that keeps the height and width, then batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(image)))

    def fold_norm(self) -> None:
        """Folds the norm into the convolution, for inference only.

        If the norm or the convolution is replaced, hooked or parametrised, both stay unchanged and are called as
        modules.
        """
        if is_plain(self.conv) and isinstance(self.norm, nn.BatchNorm2d) and is_all_plain(self.norm, (nn.BatchNorm2d,)):
            scale, shift = norm_line(self.norm)
            self.conv = with_numbers(self.conv, self.conv.weight * scale.view(-1, 1, 1, 1), shift)
            self.norm = nn.Identity().train(self.training)


class UperNetHead(nn.Module):
    """Computes logits (B, K, ...) of stride 4 from four maps (B, D, ...).

    The head consists of pyramid pooling on the coarsest map, a top-down path, and a convolution that combines all maps.
    """

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
        """Applies pyramid pooling to the coarsest map (B, D, ...); the result is (B, E, ...).

        The map is concatenated with its means over windows of several sizes, and a convolution combines all channels.
        """
        context = [
            resize_bilinear(pool(pool_to(coarsest, size)), coarsest.shape[-2:])
            for pool, size in zip(self.pools, POOL_SIZES, strict=True)
        ]
        level: Tensor = self.bottleneck(torch.cat([coarsest, *context], dim=1))
        return level


class AuxiliaryHead(nn.Module):
    """Computes logits (B, K, ...) from one map (B, D, ...), with the height and width of the map.

    This head is used only in training, where a second loss is computed from its logits.
    """

    def __init__(self, embed_dim: int, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = ConvNormReLU(embed_dim, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(self.conv(image)))
        return logits


class FPNNeck(nn.Module):
    """A feature pyramid network (arXiv 1612.03144). It turns four maps (B, D, ...) into four maps of the same shapes.

    A top-down path adds each map, from the coarsest on, to the next finer map.
    """

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
    """Computes logits (B, K, ...) of stride 4 from four maps (B, D, ...).

    The sides of each map are doubled until the map has stride 4, with a convolution before each doubling. The finest
    map gets one convolution and is not doubled. Then all maps are added.
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
                if total is not None:  # for all maps except the finest
                    level = resize_bilinear(level, [2 * side for side in level.shape[-2:]])
            total = level if total is None else total + resize_bilinear(level, total.shape[-2:])
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


class Segmenter(OnPyramid):
    """Base class of segmenters: computes logits (B, K, H, W) from normalised images (B, in_channels, H, W).

    Each side of the images must have at least the length of one patch.

    Attributes:
        config: architecture of the model.
        info: class names and preprocessing; None if they are unknown.
        backbone: the XCiT and its pyramid.
        pool_sizes: sizes, in pixels per side, to which the head pools the coarsest map; empty if it does not pool.
    """

    pool_sizes: tuple[int, ...] = ()

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        if not config.num_classes:
            raise XCiTError("a segmenter needs classes: set num_classes above 0")
        self.config = copy.copy(config)  # a copy, because other libraries may set attributes on the config of a model
        self.info: SegmenterInfo | None = None
        self.backbone = XCiTPyramid(config.backbone, config.out_indices)

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.config.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the layers that compute the logits with new layers for another number of classes."""
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
        """Returns logits (B, K, H, W), or a `SegmenterOutput` if `with_auxiliary` is true."""
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
        """Computes logits (B, K, ...) of stride 4 from the pyramid's maps."""
        raise NotImplementedError

    def fuse(self) -> Self:
        """Returns a copy for inference, as `OnPyramid.fuse` does. The batch norms of the head are folded too.

        The copy computes the maps of its pyramid and head a few rows at a time. If a module of the pyramid or head is
        replaced, hooked or parametrised, the copy computes whole maps instead.
        """
        fused = super().fuse()
        for module in fused.modules():
            if type(module) is ConvNormReLU:
                module.fold_norm()
        return fused

    @property
    def goes_by_rows(self) -> bool:
        """Whether the model may compute its logits a few rows at a time, without calling its layers as modules.

        This is true if the model is fused and no module of the pyramid or head is replaced, hooked or parametrised.
        """
        parts = (part for name, part in self.named_children() if name not in ("backbone", "auxiliary"))
        return (
            isinstance(self.backbone.xcit, FusedXCiT)
            and not is_watched(self.backbone)
            and is_plain_pyramid(self.backbone.pyramid)
            and all(is_all_plain(part, _LAYERS) for part in parts)
        )

    def rows(self, taps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        """Returns the logits of stride 4 of one image, as a map that is computed a few rows at a time.

        The image may have any size. `goes_by_rows` must be true.

        Args:
            taps: the tokens of the image after each of the four blocks for the pyramid (see `out_indices` in the
                config), each (token rows, tokens per row, D).
            pooled: the result of `pool` for the same `taps`.
        """
        return self.decode_rows(pyramid_rows(self.backbone.pyramid, taps), pooled)

    def pool(self, taps: Sequence[MapRows], rows_at_once: int) -> list[Tensor]:
        """Pools the coarsest map of one image to (n, n, D) for each n in `pool_sizes`, in one pass over its rows.

        Args:
            taps: as in `rows`.
            rows_at_once: number of rows of the coarsest map that are read at once.
        """
        if not self.pool_sizes:
            return []
        return pooled_means(pyramid_rows(self.backbone.pyramid, taps)[-1], self.pool_sizes, rows_at_once)

    def decode_rows(self, maps: Sequence[MapRows], pooled: Sequence[Tensor]) -> MapRows:
        """Returns the result of `decode` for one image, as a map that is computed a few rows at a time.

        Args:
            maps: the pyramid's maps of the image.
            pooled: the result of `pool`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def logit_rows(self, images: Tensor) -> list[MapRows]:
        """Returns the logits of stride 4 for images (B, in_channels, H, W) that fit into memory, one map per image.

        The maps are computed a few rows at a time. `goes_by_rows` must be true.
        """
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
        """Computes logits (B, K, ...) of the auxiliary head; returns None if the model has no auxiliary head."""
        return None

    def reset_parameters(self) -> None:
        """Sets all weights to new random values, as at construction. Learned weights are lost."""
        reset_within(self)
        self._init_parts()

    def _init_parts(self) -> None:
        """Initialises the heads.

        The weights of classifiers have standard deviation 0.01. Other convolutions get Kaiming normal weights (fan
        out). Biases are 0.
        """
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
    """Semantic FPN, with a feature pyramid network as neck and a light head."""

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
"""Module types with outputs that can be computed a few rows at a time.

If the head of a fused segmenter contains other module types, the logits are computed from whole maps.
"""


def whole_map(rows: MapRows) -> Tensor:
    """Reads a whole map, a few rows at a time, and returns it as an image (1, channels, height, width)."""
    found: Tensor | None = None
    for start, end in spans(rows.height, rows_of_a_stripe(rows)):
        part = as_image(rows.read(start, end))
        if found is None:
            found = part.new_empty(1, rows.channels, rows.height, rows.width)
        found[:, :, start:end] = part
    assert found is not None
    return found


def build_segmenter(config: SegmenterConfig) -> Segmenter:
    """Builds a segmenter from its config, with random weights."""
    return UperNet(config) if config.kind == "upernet" else SemanticFPN(config)
