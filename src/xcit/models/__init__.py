"""Defines the models as `nn.Module`s. Training loops and the reading of weights are in other packages."""

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing, published_preprocessing
from xcit.models.config import XCiTConfig
from xcit.models.info import ModelInfo, SegmenterInfo
from xcit.models.layers import FX_LEAF_MODULES
from xcit.models.pyramid import XCiTPyramid
from xcit.models.segmentation import Segmenter, SegmenterConfig, SemanticFPN, UperNet, build_segmenter
from xcit.models.xcit import XCiT

__all__ = [
    "FX_LEAF_MODULES",
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
