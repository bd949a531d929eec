"""The models as plain `nn.Module`s: no files, no training logic."""

from xcit.models.info import (
    DINO_PREPROCESSING,
    ModelInfo,
    Preprocessing,
    SegmentationPreprocessing,
    SegmenterInfo,
    published_preprocessing,
)
from xcit.models.pyramid import XCiTPyramid
from xcit.models.segmentation import Segmenter, SegmenterConfig, SemanticFPN, UperNet, build_segmenter
from xcit.models.xcit import XCiT, XCiTConfig

__all__ = [
    "DINO_PREPROCESSING",
    "ModelInfo",
    "Preprocessing",
    "SegmentationPreprocessing",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterInfo",
    "SemanticFPN",
    "UperNet",
    "XCiT",
    "XCiTConfig",
    "XCiTPyramid",
    "build_segmenter",
    "published_preprocessing",
]
