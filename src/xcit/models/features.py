"""A module with feature maps as its output, like timm's models with `features_only=True`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xcit.models.xcit import XCiT


class FeatureInfo(list[dict[str, Any]]):
    """Description of feature maps: a list with one dictionary per map, in the order of the blocks.

    The keys are "num_chs" (number of channels), "reduction" (stride in pixels) and "module" (name of the block).
    """

    def channels(self) -> list[int]:
        """Returns the number of channels of each map."""
        return [one["num_chs"] for one in self]

    def reduction(self) -> list[int]:
        """Returns the stride of each map, in pixels of the image."""
        return [one["reduction"] for one in self]

    def module_name(self) -> list[str]:
        """Returns, for each map, the name of the block that outputs it."""
        return [one["module"] for one in self]


class FeatureMaps(nn.Module):
    """A wrapper of an XCiT that returns one feature map (B, D, H, W) for each chosen block.

    D is the width of the model, and H x W is the token grid. The layers after the last chosen block are removed.

    Args:
        model: the XCiT. It is changed in place: the layers that are not needed are removed from it.
        out_indices: indices of the chosen blocks; negative indices count from the end. A number n instead of a sequence
            chooses the last n blocks.

    Attributes:
        model: the XCiT.
        out_indices: indices of the chosen blocks, counted from 0, in rising order.
        feature_info: description of the maps.

    Raises:
        XCiTError: if the model has no block with one of the indices.
    """

    def __init__(self, model: XCiT, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices)
        self.model = model
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the maps (B, D, H, W) of normalised images (B, in_channels, h, w), in the order of the blocks."""
        maps = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps
