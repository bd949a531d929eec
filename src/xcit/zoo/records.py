"""What is known of a checkpoint before it is loaded."""

from dataclasses import dataclass
from typing import Literal

from xcit.models import Preprocessing, XCiTConfig
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
