"""The table of model kinds (classifier, segmenter, detector), with the functions and values that differ between kinds.

Code that stores, loads or measures models uses the fields of a kind, so that it works for every kind. A new kind of
model needs an entry in this table, a module in `models/`, a task and a recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from xcit.errors import XCiTError
from xcit.images.preprocess import DINO_PREPROCESSING, Preprocessing, published_preprocessing
from xcit.models import ModelInfo, Segmenter, SegmenterConfig, SegmenterInfo, XCiT, XCiTConfig, build_segmenter
from xcit.models.detection.config import DetectorInfo, MaskRCNNConfig
from xcit.models.segmentation import SegmenterKind
from xcit.weights.dense import MASK_RCNN, SEM_FPN, UPERNET, Heads
from xcit.weights.files import StoredWeights
from xcit.zoo.shapes import check_backbone, config_from_state
from xcit.zoo.timm_hub import timm_config

if TYPE_CHECKING:
    from xcit.models.detection.mask_rcnn import MaskRCNN

Config = TypeVar("Config")
Info = TypeVar("Info")
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Config, Info, Model]):
    """One kind of model.

    The models of a kind have `config`, `info`, `num_classes`, `reset_classifier(num_classes)` and `fuse()`. Their
    configs have `num_classes`. An info contains the class names and the preprocessing of a model.

    Attributes:
        name: the name of the kind in messages, such as "segmenter".
        task: the name of its task in files, such as "semantic-segmentation".
        config: the class of its configs.
        info: the class of its infos.
        model: returns the class of its models. It is a function so that the class is imported only when it is needed.
        build: builds a model from a config, with random weights.
        backbone: returns the config of the XCiT within a model, from the model's config.
        config_from_weights: returns a model's config, from weights without metadata.
        info_from_weights: returns a model's info, from the model's config and from weights without metadata. Usually,
            the weights contain no such information, and the result is None.
        fit: returns the config for loading a file into a model of a given config. Its arguments are the given config,
            the weights, the config in the file's metadata (or None), and the requested number of classes (or None). It
            raises an `XCiTError` if the weights do not fit.
        forward: runs a model on images (B, C, h, w) with values in 0..1, without resizing them.
        heads: the table of tensor names of each head, by the head's name; empty for a classifier.
        published_format: the format of the published models, as named in `xcit convert`; "" for a classifier.
        timm_config: returns the content of timm's `config.json`, from config and info; None if timm has no such model.
        hub_tag: returns the Hub's name for the task of a model, from the model's config.
        counts_flops: whether FLOPs can be counted for this kind by the rule of the published figures.
        float32_only: whether its models compute only in float32.
    """

    name: str
    task: str
    config: type[Config]
    info: type[Info]
    model: Callable[[], type[Model]]
    build: Callable[[Config], Model]
    backbone: Callable[[Config], XCiTConfig]
    config_from_weights: Callable[[StoredWeights], Config]
    info_from_weights: Callable[[StoredWeights, Config], Info | None] = lambda stored, config: None
    fit: Callable[[Config, StoredWeights, Config | None, int | None], Config]
    forward: Callable[[Model, Tensor], object] = lambda model, images: model(images)
    heads: Heads = field(default_factory=dict)
    published_format: str = ""
    timm_config: Callable[[Config, Info | None], dict[str, Any] | None] = lambda config, info: None
    hub_tag: Callable[[Config], str] = lambda config: ""
    counts_flops: bool = False
    float32_only: bool = False

    def require(self, model: nn.Module, what: str) -> Model:
        """Checks that a model is of this kind, and returns the model.

        Args:
            model: the model.
            what: name of the model, for the error message.

        Raises:
            XCiTError: if the model is of another kind.
        """
        if not isinstance(model, self.model()):
            raise XCiTError(f"{what} is no {self.name}: `xcit list --task {self.task}` lists the {self.name}s")
        return model


# Classifiers and feature backbones


def _fit_classifier(
    config: XCiTConfig, stored: StoredWeights, stated: XCiTConfig | None, num_classes: int | None
) -> XCiTConfig:
    """Implements `Kind.fit` for classifiers.

    If `num_classes` is given, the file may have another number of classes. The returned config then has the number of
    classes of the file's head, or 0 if the file has no head.
    """
    path, has_head = str(stored.path), "head.weight" in stored.state
    if num_classes is not None:
        return replace(config, num_classes=stored.state["head.weight"].shape[0] if has_head else 0)
    if not config.num_classes:
        check_backbone(config, stored.state, path)
    elif not has_head:
        raise XCiTError(
            f"{path}: a backbone without a classifier; pass num_classes=0 for its features, or the number of classes "
            "for a new random head"
        )
    return config


def _info_of_weights(stored: StoredWeights, config: XCiTConfig) -> ModelInfo | None:
    """Implements `Kind.info_from_weights` for classifiers.

    All DINO backbones have the same preprocessing, and some files contain the mean and standard deviation of their
    images. For other files the result is None.
    """
    spec: Preprocessing | None = None
    if stored.format == "dino" and config.in_channels == len(DINO_PREPROCESSING.mean):
        spec = DINO_PREPROCESSING
    if stored.normalization is not None:
        mean, std = stored.normalization
        spec = replace(spec or published_preprocessing("official", 224), mean=mean, std=std)
    if spec is None or len(spec.mean) != config.in_channels:
        return None
    return ModelInfo(name=stored.path.stem, preprocessing=spec, assumed=True)


CLASSIFIER: Kind[XCiTConfig, ModelInfo, XCiT] = Kind(
    name="classifier",
    task="image-classification",
    config=XCiTConfig,
    info=ModelInfo,
    model=lambda: XCiT,
    build=XCiT,
    backbone=lambda config: config,
    config_from_weights=lambda stored: config_from_state(stored.state, str(stored.path)),
    info_from_weights=_info_of_weights,
    fit=_fit_classifier,
    timm_config=timm_config,
    hub_tag=lambda config: "image-classification" if config.num_classes else "image-feature-extraction",
    counts_flops=True,
)


# Segmenters and detectors: a head on a pyramid of feature maps


def _fit_head(
    config_from_weights: Callable[[StoredWeights], Any], *names: str
) -> Callable[[Any, StoredWeights, Any | None, int | None], Any]:
    """Returns `Kind.fit` for segmenters or detectors.

    The number of classes is taken from the file. The file and the given config must have equal backbones, and equal
    values of the config fields in `names`.
    """

    def fit(config: Any, stored: StoredWeights, stated: Any | None, num_classes: int | None) -> Any:
        found = config_from_weights(stored) if stated is None else stated
        for name in names:
            if getattr(found, name) != getattr(config, name):
                raise XCiTError(
                    f"{stored.path}: these are the weights of another head: {name} is {getattr(found, name)} in the "
                    f"file, but {getattr(config, name)} in the model"
                )
        check_backbone(config.backbone, stored.state, str(stored.path))
        return replace(config, num_classes=found.num_classes) if stated is None else found

    return fit


def _sides(stored: StoredWeights, name: str, kind: str) -> tuple[int, int]:
    """Returns the number of outputs and the number of inputs of a layer, from its weight.

    Raises:
        XCiTError: if the file has no such weight, or the weight has fewer than two dimensions.
    """
    weight = stored.dense.get(name)
    if weight is None or weight.ndim < 2:
        problem = f"there is no tensor {name!r}" if weight is None else f"{name} has {weight.ndim} dimensions"
        raise XCiTError(f"{stored.path}: these are not the weights of a {kind}: {problem}")
    return weight.shape[0], weight.shape[1]


def _segmenter_config(stored: StoredWeights) -> SegmenterConfig:
    kind: SegmenterKind = "upernet" if stored.head == "upernet" else "sem-fpn"
    num_classes, channels = _sides(stored, "head.classifier.weight", "segmenter")
    auxiliary = _sides(stored, "auxiliary.classifier.weight", "segmenter")[1] if kind == "upernet" else None
    backbone = config_from_state(stored.state, str(stored.path))
    config = SegmenterConfig(kind=kind, backbone=backbone, num_classes=num_classes, channels=channels)
    return config if auxiliary is None else replace(config, auxiliary_channels=auxiliary)


SEGMENTER: Kind[SegmenterConfig, SegmenterInfo, Segmenter] = Kind(
    name="segmenter",
    task="semantic-segmentation",
    config=SegmenterConfig,
    info=SegmenterInfo,
    model=lambda: Segmenter,
    build=build_segmenter,
    backbone=lambda config: config.backbone,
    config_from_weights=_segmenter_config,
    fit=_fit_head(_segmenter_config, "kind", "channels"),
    heads={"upernet": UPERNET, "sem-fpn": SEM_FPN},
    published_format="mmseg",
    hub_tag=lambda config: "image-segmentation",
)


def _mask_rcnn() -> "type[MaskRCNN]":
    from xcit.models.detection.mask_rcnn import MaskRCNN  # torchvision takes seconds to import

    return MaskRCNN


def _detector_config(stored: StoredWeights) -> MaskRCNNConfig:
    box_features, _ = _sides(stored, "roi_heads.box_head.fc7.weight", "detector")
    num_classes, channels = _sides(stored, "roi_heads.mask_predictor.mask_fcn_logits.weight", "detector")
    backbone = config_from_state(stored.state, str(stored.path))
    return MaskRCNNConfig(backbone=backbone, num_classes=num_classes, channels=channels, box_features=box_features)


def _detect_each(model: "MaskRCNN", images: Tensor) -> object:
    height, width = images.shape[-2:]
    return [model.detect(image, sides=(min(height, width), max(height, width))) for image in images]


DETECTOR: "Kind[MaskRCNNConfig, DetectorInfo, MaskRCNN]" = Kind(
    name="detector",
    task="object-detection",
    config=MaskRCNNConfig,
    info=DetectorInfo,
    model=_mask_rcnn,
    build=lambda config: _mask_rcnn()(config),
    backbone=lambda config: config.backbone,
    config_from_weights=_detector_config,
    fit=_fit_head(_detector_config, "channels", "box_features"),
    forward=_detect_each,
    heads={"mask-rcnn": MASK_RCNN},
    published_format="mmdet",
    hub_tag=lambda config: "object-detection",
    float32_only=True,
)


KINDS: dict[str, Kind[Any, Any, Any]] = {kind.name: kind for kind in (CLASSIFIER, SEGMENTER, DETECTOR)}
"""The table: all kinds by their names."""


def all_heads() -> Heads:
    """Returns a dict that maps the name of each head, of any kind, to the head's table of tensor names."""
    return {head: rows for kind in KINDS.values() for head, rows in kind.heads.items()}


def kind_of_config(config: object) -> Kind[Any, Any, Any]:
    """Returns the kind of a model, from its config."""
    return next(kind for kind in KINDS.values() if type(config) is kind.config)


def kind_of_task(task: str) -> Kind[Any, Any, Any] | None:
    """Returns the kind with this task; None if no kind has this task."""
    return next((kind for kind in KINDS.values() if kind.task == task), None)


def kind_of_weights(stored: StoredWeights) -> Kind[Any, Any, Any]:
    """Returns the kind of a model from the head in its weights; `CLASSIFIER` if no kind has this head."""
    return next((kind for kind in KINDS.values() if stored.head in kind.heads), CLASSIFIER)
