"""The models as plain `nn.Module`s: no files, no training logic."""

from xcit.models.info import ModelInfo, Preprocessing
from xcit.models.xcit import XCiT, XCiTConfig

__all__ = ["ModelInfo", "Preprocessing", "XCiT", "XCiTConfig"]
