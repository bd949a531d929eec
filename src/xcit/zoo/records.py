"""What is known of a checkpoint before it is loaded."""

from dataclasses import dataclass
from typing import Literal

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing
from xcit.models import SegmenterConfig, XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.weights.fetch import Source

Protocol = Literal["mmpretrain", "official"]
"""Who measured, and how they resized; see `published_preprocessing`."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Published figures, in percent. `top5` is none where it was not published.

    `method` says what classified: the model's own head, the nearest neighbours of its feature, or a linear probe on it.
    """

    measured_by: str
    method: Literal["classifier", "k-NN", "linear"] = "classifier"
    top1: float
    top5: float | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model that can be had by name.

    Attributes:
        name: unique.
        aliases: other names for it: the official one, timm's, the bare architecture.
        task: what it does: "image-classification", or "image-features" where there is no classifier.
        architecture: its name in `ARCHITECTURES`.
        config: its shape.
        recipe: the name of the training config.
        dataset: what it was trained on and is measured on.
        distilled: whether a teacher helped.
        preprocessing: how to prepare images, as its authors measured it.
        accuracies: published figures, each with its protocol.
        sources: where to get it, in the order they are tried; empty for a packaged model.
        packaged: the file in this package, for a model that needs no download.
        licence: of the weights.
    """

    name: str
    aliases: tuple[str, ...]
    task: str = "image-classification"
    architecture: str
    config: XCiTConfig
    recipe: str
    dataset: str
    distilled: bool = False
    preprocessing: Preprocessing
    accuracies: tuple[Accuracy, ...]
    sources: tuple[Source, ...] = ()
    packaged: str | None = None
    licence: str = "Apache-2.0"

    @property
    def model(self) -> XCiTConfig:
        """The shape of the whole model."""
        return self.config


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published figure, in percent, of the metric that it names."""

    measured_by: str
    metric: Literal["mIoU", "box AP", "mask AP"]
    value: float


@dataclass(frozen=True, kw_only=True)
class SegmenterRecord:
    """A trained segmenter that can be had by name.

    Attributes:
        name: unique.
        aliases: other names for it.
        task: what it does.
        architecture: that of its backbone, in `ARCHITECTURES`.
        model: its shape.
        recipe: the name of the training config.
        dataset: what it was trained on and is measured on.
        preprocessing: how to prepare images, as its authors measured it.
        figures: published figures.
        sources: where to get it, in the order they are tried.
        packaged: none: no segmenter comes with this package.
        licence: of the weights.
    """

    name: str
    aliases: tuple[str, ...]
    task: str = "semantic-segmentation"
    architecture: str
    model: SegmenterConfig
    recipe: str
    dataset: str
    preprocessing: SegmentationPreprocessing
    figures: tuple[Figure, ...]
    sources: tuple[Source, ...]
    packaged: None = None
    licence: str = "Apache-2.0"

    @property
    def config(self) -> XCiTConfig:
        """The shape of the backbone."""
        return self.model.backbone


@dataclass(frozen=True, kw_only=True)
class DetectorRecord:
    """A trained detector that can be had by name.

    Attributes:
        name: unique.
        aliases: other names for it.
        task: what it does.
        architecture: that of its backbone, in `ARCHITECTURES`.
        model: its shape, which includes how images are prepared.
        recipe: the name of the training config.
        dataset: what it was trained on and is measured on.
        figures: published figures.
        sources: where to get it, in the order they are tried.
        packaged: none: no detector comes with this package.
        licence: of the weights.
    """

    name: str
    aliases: tuple[str, ...]
    task: str = "object-detection"
    architecture: str
    model: MaskRCNNConfig
    recipe: str
    dataset: str
    figures: tuple[Figure, ...]
    sources: tuple[Source, ...]
    packaged: None = None
    licence: str = "Apache-2.0"

    @property
    def config(self) -> XCiTConfig:
        """The shape of the backbone."""
        return self.model.backbone


Record = Checkpoint | SegmenterRecord | DetectorRecord
"""Anything that can be had by name."""
