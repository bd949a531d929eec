"""Configuration and metadata of a detector. Torchvision is not imported here, because the import takes seconds."""

from dataclasses import dataclass, replace

from xcit.errors import check_field
from xcit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, SegmentationPreprocessing
from xcit.models.config import XCiTConfig
from xcit.models.hosts import ReadableConfig, keeps_notes


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """Metadata of a detector with weights.

    Attributes:
        name: name of the model.
        class_names: names of the classes in the order of the labels, which start at 1; empty if they are unknown.
        category_ids: for each class, the category ID in the data set.
    """

    name: str
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


@keeps_notes
@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(ReadableConfig):
    """Architecture and preprocessing of a Mask R-CNN. The defaults are the values of the published models.

    Attributes:
        backbone: config of an XCiT without class token. Its `drop_path_rate` is used in training.
        out_indices: indices of the four blocks that output the tokens for the feature maps; empty means
            `default_out_indices`.
        num_classes: number of classes without the background; 0 means that training sets it to the number of classes of
            the data set.
        channels: number of channels of the feature pyramid and of the convolutions for masks.
        box_features: width of the two linear layers for boxes.
        anchor_scale: side of a square anchor, in pixels of its feature map.
        short_side: maximum length of the short side, in pixels. An image is scaled to the largest size within both
            `short_side` and `long_side`.
        long_side: maximum length of the long side, in pixels.
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
        check_field(self, "mean", len(self.mean) == channels, f"{channels} numbers, one per channel")
        check_field(
            self, "std", len(self.std) == channels and min(self.std) > 0, f"{channels} numbers above 0, one per channel"
        )

    def prepared(
        self, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, size: int | None = None
    ) -> "MaskRCNNConfig":
        """Returns a copy with another mean, standard deviation or size of the images.

        Args:
            mean: mean of each channel; None means no change.
            std: standard deviation of each channel; None means no change.
            size: new `short_side`; `long_side` is multiplied by the same factor. None means no change.

        Raises:
            XCiTError: if the number of channels is wrong.
        """
        own = SegmentationPreprocessing(
            long_side=self.long_side, short_side=self.short_side, mean=self.mean, std=self.std
        )
        spec = own.changed(mean=mean, std=std, size=size)
        return replace(self, mean=spec.mean, std=spec.std, short_side=spec.short_side, long_side=spec.long_side)
