"""The models as plain `nn.Module`s: no files, no training logic."""

from xcit.models.info import DINO_PREPROCESSING, ModelInfo, Preprocessing, published_preprocessing
from xcit.models.pyramid import XCiTPyramid
from xcit.models.xcit import XCiT, XCiTConfig

__all__ = [
    "DINO_PREPROCESSING",
    "ModelInfo",
    "Preprocessing",
    "XCiT",
    "XCiTConfig",
    "XCiTPyramid",
    "published_preprocessing",
]
