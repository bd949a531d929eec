"""A module that returns feature maps when it is called, as timm's `features_only` does."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xcit.models.xcit import XCiT


class FeatureInfo(list[dict[str, Any]]):
    """One dictionary per map, in the order of the blocks: "num_chs", "reduction" (the stride) and "module"."""

    def channels(self) -> list[int]:
        """Returns the number of channels of each map."""
        return [one["num_chs"] for one in self]

    def reduction(self) -> list[int]:
        """Returns the stride of each map, in pixels of the image."""
        return [one["reduction"] for one in self]

    def module_name(self) -> list[str]:
        """Returns the name of the block after which each map is taken."""
        return [one["module"] for one in self]


class FeatureMaps(nn.Module):
    """An XCiT that returns maps (B, D, H, W) when it is called, one for each of the chosen blocks.

    Blocks after the last chosen one are removed.

    Args:
        model: the backbone, which is changed.
        out_indices: an int means the last n blocks; negative indices count from the end.

    Attributes:
        model: the backbone.
        out_indices: the blocks, counted from 0.
        feature_info: description of the maps.

    Raises:
        XCiTError: if the model has no such block.
    """

    def __init__(self, model: XCiT, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices)
        self.model = model
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns maps (B, D, H, W) of normalised images, in the order of the blocks."""
        maps = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps
