"""Feature maps by a call, as timm's `features_only` gives them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xcit.models.xcit import XCiT


class FeatureInfo(list[dict[str, Any]]):
    """One dictionary a map, from the first block on: "num_chs", "reduction" (its stride) and "module"."""

    def channels(self) -> list[int]:
        """Width of each map."""
        return [one["num_chs"] for one in self]

    def reduction(self) -> list[int]:
        """Pixels of the image a pixel of each map."""
        return [one["reduction"] for one in self]

    def module_name(self) -> list[str]:
        """The block that each map is taken after."""
        return [one["module"] for one in self]


class FeatureMaps(nn.Module):
    """An XCiT whose call gives maps (B, D, H, W), one for each of some blocks.

    Blocks after the last of them are dropped.

    Args:
        model: which is changed.
        out_indices: the last n blocks for an int, else these; negative counts from the end.

    Attributes:
        model: the backbone.
        out_indices: the blocks, counted from 0.
        feature_info: of the maps.

    Raises:
        XCiTError: if there is no such block.
    """

    def __init__(self, model: XCiT, out_indices: int | Sequence[int]) -> None:
        super().__init__()
        self.out_indices = model.prune_intermediate_layers(out_indices)
        self.model = model
        self.feature_info = FeatureInfo(model.feature_info[index] for index in self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, D, H, W) of normalised images, from the first block on."""
        maps = self.model.forward_intermediates(images, self.out_indices, intermediates_only=True)
        assert isinstance(maps, list)
        return maps
