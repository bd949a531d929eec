"""Shape of a detector, and what else a person needs to use it; without torchvision, which costs seconds to import."""

from dataclasses import dataclass, replace

from xcit.errors import XCiTError
from xcit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, SegmentationPreprocessing
from xcit.models.config import XCiTConfig


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """Name, and class names in the order of the labels from 1 on, with the ids that their data set gives them."""

    name: str
    class_names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """Shape of a Mask R-CNN; the defaults are the published ones.

    Attributes:
        backbone: an XCiT without class token; its stochastic depth is that of training.
        out_indices: the four blocks whose tokens become the feature maps; empty takes `default_out_indices`.
        num_classes: without the background; 0 where the data decide.
        channels: of the feature pyramid and of the convolutions for masks.
        box_features: of the two linear layers for boxes.
        anchor_scale: side of the smallest square anchor, in pixels of its feature map.
        short_side: an image is scaled as large as fits into `short_side` and `long_side` pixels.
        long_side: likewise.
        mean: of the channels, of pixels in 0..1.
        std: likewise.
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
        def need(name: str, condition: bool, must: str) -> None:
            if not condition:
                raise XCiTError(f"MaskRCNNConfig: {name} is {getattr(self, name)}, must be {must}")

        need("num_classes", self.num_classes >= 0, "0 or more")
        for name in ("channels", "box_features", "short_side", "long_side"):
            need(name, getattr(self, name) >= 1, "at least 1")
        need("anchor_scale", self.anchor_scale > 0, "above 0")
        need("long_side", self.long_side >= self.short_side, f"at least short_side {self.short_side}")
        channels = self.backbone.in_channels
        need("mean", len(self.mean) == channels, f"{channels} numbers, one a channel")
        need("std", len(self.std) == channels and min(self.std) > 0, f"{channels} numbers above 0, one a channel")

    def prepared(
        self, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None, size: int | None = None
    ) -> "MaskRCNNConfig":
        """With another mean, standard deviation or short side of the images.

        Raises:
            XCiTError: as `SegmentationPreprocessing.changed` does.
        """
        own = SegmentationPreprocessing(
            long_side=self.long_side, short_side=self.short_side, mean=self.mean, std=self.std
        )
        spec = own.changed(mean=mean, std=std, size=size)
        return replace(self, mean=spec.mean, std=spec.std, short_side=spec.short_side, long_side=spec.long_side)
