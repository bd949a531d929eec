"""The models as plain `nn.Module`s: no files, no training logic."""

from xcit.models.info import ModelInfo, Preprocessing, published_preprocessing
from xcit.models.xcit import XCiT, XCiTConfig

__all__ = ["ModelInfo", "Preprocessing", "XCiT", "XCiTConfig", "published_preprocessing"]
