"""Data that a model needs besides its weights: the preprocessing of its images and the names of its classes."""

from dataclasses import dataclass

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Metadata of a classifier with weights.

    Attributes:
        name: name of the model.
        preprocessing: preprocessing of the images.
        class_names: names of the classes in the order of the logits; empty if they are unknown.
        class_ids: names of the classes' folders on disk (for ImageNet, the WordNet IDs); empty if the folders have the
            class names.
        is_multi_label: if true, an image may have several classes, and the sigmoid of a logit is the probability of its
            class. If false, an image has one class, and the softmax of all logits gives the probabilities.
        assumed: true if `preprocessing` may differ from the preprocessing in training: the weights file did not contain
            the preprocessing, or the preprocessing was adapted, for example to another number of channels.
    """

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    is_multi_label: bool = False
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo:
    """Metadata of a segmenter with weights. The attributes have the same meaning as in `ModelInfo`."""

    name: str
    preprocessing: SegmentationPreprocessing
    class_names: tuple[str, ...] = ()
    assumed: bool = False
