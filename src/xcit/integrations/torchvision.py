"""Builds an XCiT with its feature pyramid as a backbone for torchvision's detectors.

    from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
    from xcit.integrations.torchvision import pyramid_backbone

    FasterRCNN(pyramid_backbone("xcit-small-12-p8", pretrained=True), num_classes=3)

torchvision's detector resizes, pads and normalises the images; its default mean and standard deviation are ImageNet's.
torchvision's rules for anchors, RoIAlign and resizing differ from the rules of the published detectors. To reproduce
the published accuracy, use `xcit.get_model("mask-rcnn_xcit-small-12-p16_3x_coco", pretrained=True)` instead.
"""

import os
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from xcit.models import XCiTPyramid
from xcit.models.pyramid import STRIDES
from xcit.zoo import get_backbone


class PyramidBackbone(nn.Module):
    """Maps images (B, in_channels, h, w) to five feature maps (B, out_channels, height, width).

    The maps have torchvision's names: "0" to "3" have the strides 4, 8, 16 and 32, and "pool" has the stride 64.

    Attributes:
        body: the XCiT with its pyramid, which returns the maps of strides 4, 8, 16 and 32.
        fpn: torchvision's feature pyramid network on the maps of `body`.
        out_channels: number of channels of each map; torchvision's detectors read it.
    """

    def __init__(self, body: XCiTPyramid, out_channels: int = 256) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork([body.embed_dim] * len(STRIDES), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the maps by name, in ascending order of their strides."""
        maps: dict[str, Tensor] = self.fpn({str(index): image for index, image in enumerate(self.body(images))})
        return maps


def pyramid_backbone(
    model: str | os.PathLike[str],
    pretrained: bool | str | os.PathLike[str] = False,
    *,
    out_channels: int = 256,
    out_indices: Sequence[int] | None = None,
) -> PyramidBackbone:
    """Builds a backbone for torchvision's `FasterRCNN`, `MaskRCNN`, `RetinaNet` and `FCOS`, in training mode.

    Args:
        model: a name, file, folder or repository, see `xcit.get_model`.
        pretrained: see `xcit.get_model`. Weights of a detector or segmenter include the layers that resize the maps.
            With other weights, these layers get random weights. The feature pyramid network always gets random weights.
        out_channels: number of channels of each map.
        out_indices: the blocks whose tokens become the maps, see `XCiTPyramid`.

    Raises:
        XCiTError: if the backbone can't be built or its weights can't be loaded; see `xcit.get_backbone`.
    """
    return PyramidBackbone(get_backbone(model, pretrained, pyramid=True, out_indices=out_indices), out_channels).train()
