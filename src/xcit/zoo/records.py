"""Records of published models. A record contains all that is known about a model before its weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xcit.images.preprocess import Preprocessing, SegmentationPreprocessing
from xcit.models import ModelInfo, SegmenterConfig, SegmenterInfo, XCiTConfig
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.weights.fetch import Source
from xcit.zoo.classes import classes_of
from xcit.zoo.kinds import CLASSIFIER, DETECTOR, SEGMENTER, Kind

Protocol = Literal["mmpretrain", "official"]
"""The protocol of a published accuracy, named after the project that measured the accuracy.

The protocol determines the preprocessing.
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trained model that can be loaded by name.

    Attributes:
        kind: the kind of the model: classifier, segmenter or detector.
        name: the unique name of the model.
        aliases: other names of the model: the names that its authors and timm use, and the name of its architecture.
        task: the task of the model, such as "image-classification".
        architecture: name of its backbone in `ARCHITECTURES`.
        recipe: name of its training config; "" if this package has none.
        dataset: name of the data set on which it was trained and measured.
        sources: the download sources of its weights, in the order in which they are tried.
        packaged: name of its weights file in this package; None if the weights have to be downloaded.
        licence: licence of its weights.
        by_hand: URL from which its file can be downloaded with a browser, if a program can't download it. The user
            then passes the path of the file, or puts the file into a mirror as `<name>.safetensors`.
    """

    kind: ClassVar[Kind[Any, Any, Any]]

    name: str
    aliases: tuple[str, ...]
    task: str
    architecture: str
    recipe: str
    dataset: str
    sources: tuple[Source, ...] = ()
    packaged: str | None = None
    licence: str = "Apache-2.0"
    by_hand: str = ""

    if TYPE_CHECKING:

        @property
        def model(self) -> Any:
            """The config of the whole model. Subclasses define this attribute as a field or a property."""

    @property
    def backbone(self) -> XCiTConfig:
        """The config of the XCiT within the model."""
        return self.kind.backbone(self.model)

    def info(self) -> Any:
        """Returns the class names and preprocessing, as in the attribute `info` of the model."""
        raise NotImplementedError

    def row(self) -> dict[str, str]:
        """Returns the model's row for `xcit list`: maps column names, such as " px" (image size), to their texts."""
        raise NotImplementedError

    def details(self, counts: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Returns labels and values for `xcit info`; `counts` contains "params" and, for a classifier, the FLOPs."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The published accuracy of a classifier or backbone.

    Attributes:
        measured_by: who measured it.
        method: "classifier" for the model's own head, "k-NN" for nearest neighbours of its features, or "linear" for a
            linear probe on its features.
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent; None if it was not published.
        attack: the adversarial attack under which it was measured; "" if there was none.
    """

    measured_by: str
    method: Literal["classifier", "k-NN", "linear"] = "classifier"
    top1: float
    top5: float | None = None
    attack: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A classifier or feature backbone.

    Attributes:
        task: "image-classification", or "image-features" if the model has no classifier.
        config: the config (shape) of the model.
        distilled: whether it was trained by distillation from a teacher.
        preprocessing: the preprocessing with which its authors measured the published accuracy.
        accuracies: the published accuracies.
    """

    kind = CLASSIFIER

    task: str = CLASSIFIER.task
    config: XCiTConfig
    distilled: bool = False
    preprocessing: Preprocessing
    accuracies: tuple[Accuracy, ...]

    @property
    def model(self) -> XCiTConfig:
        """The config of the model."""
        return self.config

    def info(self) -> ModelInfo:
        """Returns class names and preprocessing."""
        classes = classes_of(self.dataset if self.config.num_classes else "")
        return ModelInfo(
            name=self.name,
            preprocessing=self.preprocessing,
            class_names=classes.names,
            class_ids=classes.folders,
        )

    def row(self) -> dict[str, str]:
        """Returns the image size, and the published top-1 accuracies in columns such as "top-1 k-NN"."""
        top1 = {(a.method, a.measured_by): f"{a.top1:.1f}" for a in self.accuracies if not a.attack}
        attacked = next((f"{a.top1:.1f}" for a in self.accuracies if a.attack), "")
        return {
            " px": str(self.preprocessing.image_size),
            "top-1 official": top1.get(("classifier", "xcit"))
            or top1.get(("classifier", "official"))
            or top1.get(("classifier", "RobustBench"), ""),
            "top-1 mmpretrain": top1.get(("classifier", "mmpretrain"), ""),
            "top-1 k-NN": top1.get(("k-NN", "official"), ""),
            "top-1 linear": top1.get(("linear", "official"), ""),
            "top-1 attacked": attacked,
        }

    def details(self, counts: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Returns labels and values: data, architecture, parameters, FLOPs, preprocessing and accuracies."""
        config, spec = self.config, self.preprocessing
        classes = f"{config.num_classes} classes" if config.num_classes else "without labels; no classifier"
        return [
            ("data", f"{self.dataset}, {classes}" + (", distilled" if self.distilled else "")),
            (
                "architecture",
                f"{self.architecture}: width {config.embed_dim}, {config.depth} + {config.cls_depth} blocks, "
                f"{config.num_heads} heads, patches of {config.patch_size}"
                + (f" with stem strides {', '.join(map(str, config.strides))}" if config.stem_strides else ""),
            ),
            ("parameters", f"{counts['params']:,}"),
            ("FLOPs", f"{counts['flops']:,} (published rule: multiply-accumulates, without the head)"),
            ("torch FLOPs", f"{counts['torch_flops']:,} (torch's counter: 2 per multiply-accumulate)"),
            ("preprocessing", spec.sentence()),
            *(
                (
                    "accuracy",
                    f"top-1 {accuracy.top1:.2f}%"
                    + (f", top-5 {accuracy.top5:.2f}%" if accuracy.top5 is not None else "")
                    + (f" by {accuracy.method}" if accuracy.method != "classifier" else "")
                    + (f" under {accuracy.attack}" if accuracy.attack else "")
                    + f", measured by {accuracy.measured_by}",
                )
                for accuracy in self.accuracies
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A published figure of a segmenter or detector.

    Attributes:
        measured_by: who measured it.
        metric: name of the metric.
        value: the figure, in percent.
    """

    measured_by: str
    metric: Literal["mIoU", "box AP", "mask AP"]
    value: float


@dataclass(frozen=True, kw_only=True)
class DenseRecord(Record):
    """A segmenter or detector: an XCiT with a pyramid and a head.

    Attributes:
        figures: the published figures.
    """

    figures: tuple[Figure, ...]

    @property
    def head(self) -> str:
        """The head's name."""
        raise NotImplementedError

    @property
    def spec(self) -> SegmentationPreprocessing | MaskRCNNConfig:
        """An object with the preprocessing: for a detector, this is its config."""
        raise NotImplementedError

    def row(self) -> dict[str, str]:
        """Returns the short side of the images in pixels, and the published figures by metric."""
        return {" px": str(self.spec.short_side)} | {figure.metric: f"{figure.value:.1f}" for figure in self.figures}

    def details(self, counts: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Returns labels and values: data, architecture, parameters, preprocessing and figures."""
        config, spec = self.backbone, self.spec
        return [
            ("data", f"{self.dataset}, {self.model.num_classes} classes"),
            (
                "architecture",
                f"{self.head} on {self.architecture}: width {config.embed_dim}, {config.depth} blocks, "
                f"{config.num_heads} heads, patches of {config.patch_size}",
            ),
            ("parameters", f"{counts['params']:,}"),
            (
                "preprocessing",
                f"to fit {spec.long_side} x {spec.short_side}, bilinear; mean {spec.mean}, std {spec.std}",
            ),
            *(
                ("accuracy", f"{figure.metric} {figure.value:.1f}%, measured by {figure.measured_by}")
                for figure in self.figures
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class SegmenterRecord(DenseRecord):
    """A segmenter.

    Attributes:
        model: the config of the segmenter.
        preprocessing: the preprocessing with which its authors measured the published accuracy.
    """

    kind = SEGMENTER

    task: str = SEGMENTER.task
    model: SegmenterConfig
    preprocessing: SegmentationPreprocessing

    @property
    def head(self) -> str:
        """The head's name."""
        return self.model.kind

    @property
    def spec(self) -> SegmentationPreprocessing:
        """The preprocessing."""
        return self.preprocessing

    def info(self) -> SegmenterInfo:
        """Returns class names and preprocessing."""
        names = classes_of(self.dataset).names
        return SegmenterInfo(name=self.name, preprocessing=self.preprocessing, class_names=names)


@dataclass(frozen=True, kw_only=True)
class DetectorRecord(DenseRecord):
    """A detector.

    Attributes:
        model: the config of the detector, which also contains the preprocessing.
    """

    kind = DETECTOR

    task: str = DETECTOR.task
    model: MaskRCNNConfig

    @property
    def head(self) -> str:
        """The head's name."""
        return "mask-rcnn"

    @property
    def spec(self) -> MaskRCNNConfig:
        """The config, which contains the preprocessing."""
        return self.model

    def info(self) -> DetectorInfo:
        """Returns the class names and COCO's category ids."""
        classes = classes_of(self.dataset)
        return DetectorInfo(name=self.name, class_names=classes.names, category_ids=classes.numbers)
