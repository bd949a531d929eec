"""What a model needs beside its weights: the preprocessing of its images and the names of its classes."""

from dataclasses import dataclass

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Name, class names in the order of the logits (empty if unknown) and preprocessing of a model with weights.

    `class_ids` are the names of the classes' folders on disk where they differ from the class names (ImageNet's wnids).
    With `is_multi_label` an image may have several classes, and the sigmoid of each logit is a separate probability.
    `assumed` is true if the weights did not contain the preprocessing. The preprocessing then follows from the name
    under which the weights were loaded, or is the usual one for such weights.
    """

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    is_multi_label: bool = False
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """Name, preprocessing, and class names in the order of the logits (empty when unknown); see `ModelInfo`."""

    name: str
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...] = ()
    assumed: bool = False
