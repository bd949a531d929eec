"""The models as plain `nn.Module`s: no files, no training logic."""

from xcit.models.config import XCiTConfig
from xcit.models.info import ModelInfo, SegmenterInfo
from xcit.models.pyramid import XCiTPyramid
from xcit.models.segmentation import Segmenter, SegmenterConfig, SemanticFPN, UperNet, build_segmenter
from xcit.models.xcit import XCiT

__all__ = [
    "ModelInfo",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterInfo",
    "SemanticFPN",
    "UperNet",
    "XCiT",
    "XCiTConfig",
    "XCiTPyramid",
    "build_segmenter",
]
