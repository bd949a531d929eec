"""What a person needs beside the weights to use a model's numbers: its preprocessing and its class names."""

from dataclasses import dataclass

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Name, class names in the order of the logits (empty when unknown) and preprocessing of a model with weights.

    `class_ids` are the names of the classes' folders on disk where these differ from the names (ImageNet's wnids).
    `assumed` says that the weights themselves did not tell how to prepare images: the name did that they were loaded
    under, or what is usual for such weights.
    """

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """Name, preprocessing, and class names in the order of the logits (empty when unknown); see `ModelInfo`."""

    name: str
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...] = ()
    assumed: bool = False
