"""The shape and the metadata of a detector. This module does not import torchvision, because that takes seconds."""

from dataclasses import dataclass, replace

from xcit.errors import check_field
from xcit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, SegmentationPreprocessing
from xcit.models.config import XCiTConfig
from xcit.models.hosts import ReadableConfig, keeps_notes


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """A detector's name, its class names in the order of the labels from 1, and their category ids in the data set."""

    name: str
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(ReadableConfig):
    """Shape of a Mask R-CNN. The defaults are the published ones.

    Attributes:
        backbone: an XCiT without class token; its stochastic depth is used in training.
        out_indices: the four blocks whose tokens become the feature maps; empty takes `default_out_indices`.
        num_classes: number of classes without the background; 0 means the number of classes of the data set.
        channels: channels of the feature pyramid and of the convolutions for masks.
        box_features: width of the two linear layers for boxes.
        anchor_scale: side of a square anchor, in pixels of its feature map.
        short_side: an image is scaled to the largest size whose short side is at most this many pixels and whose long
            side is at most `long_side` pixels.
        long_side: see `short_side`.
        mean: mean of each channel, for pixels in 0..1.
        std: standard deviation of each channel, for pixels in 0..1.
    """

    backbone: XCiTConfig
    out_indices: tuple[int, ...] = ()
    num_classes: int = 80
    channels: int = 256
    box_features: int = 1024
    anchor_scale: float = 8.0
    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_field(self, "num_classes", self.num_classes >= 0, "0 or more")
        for name in ("channels", "box_features", "short_side", "long_side"):
            check_field(self, name, getattr(self, name) >= 1, "at least 1")
        check_field(self, "anchor_scale", self.anchor_scale > 0, "above 0")
        check_field(self, "long_side", self.long_side >= self.short_side, f"at least short_side {self.short_side}")
        channels = self.backbone.in_channels
        check_field(self, "mean", len(self.mean) == channels, f"{channels} numbers, one a channel")
        check_field(
            self, "std", len(self.std) == channels and min(self.std) > 0, f"{channels} numbers above 0, one a channel"
        )

    def prepared(
        self, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, size: int | None = None
    ) -> "MaskRCNNConfig":
        """Returns a config with another mean, standard deviation or short side of the images.

        Raises:
            XCiTError: as `SegmentationPreprocessing.changed` does.
        """
        own = SegmentationPreprocessing(
            long_side=self.long_side, short_side=self.short_side, mean=self.mean, std=self.std
        )
        spec = own.changed(mean=mean, std=std, size=size)
        return replace(self, mean=spec.mean, std=spec.std, short_side=spec.short_side, long_side=spec.long_side)
