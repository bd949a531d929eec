"""The table of model kinds, with everything that depends on the kind when models are stored, loaded or measured.

A new kind of model is a record in this table, a module in `models/`, a task and a recipe. No code outside this file
tests which kind a model is: it uses the fields of the kind.
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

    Its models have `config`, `info`, `num_classes`, `reset_classifier(num_classes)` and `fuse()`; its configs have
    `num_classes`.

    Attributes:
        name: the word for such a model in messages: "segmenter".
        task: the name of its task in files and records.
        config: the class of its configs.
        info: the class of its infos, which hold class names and preprocessing.
        model: returns the class of its models, and imports it only when it is called.
        build: builds a model from a config, with random weights.
        backbone: returns the config of the XCiT within a model of this config.
        config_from_weights: returns the config of the model that weights without metadata belong to.
        info_from_weights: returns the info that such weights contain, usually None.
        fit: returns the config with which a file's weights are loaded, if a model of a given config is wanted. Its
            arguments are the wanted config, the weights, the config in the file's metadata (or None), and the requested
            number of classes (or None). It raises an `XCiTError` if they do not fit.
        forward: runs a forward pass of images (B, C, h, w) at their own size, with values in 0..1.
        heads: names of its heads, with the published names of their tensors; empty for a plain XCiT.
        published_format: name of the format of whole published models in `convert`; "" for a plain XCiT.
        timm_config: returns the contents of `config.json` in a folder that timm and transformers read; None for a model
            that they do not have.
        hub_tag: the Hub's name for the task of a model with this config.
        counts_flops: whether the published rule for FLOPs covers this kind.
        float32_only: whether it computes only in float32.
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
        """Returns the model itself, if it is of this kind.

        Raises:
            XCiTError: if the model is of another kind; the message calls it `what`.
        """
        if not isinstance(model, self.model()):
            raise XCiTError(f"{what} is no {self.name}: `xcit list --task {self.task}` shows those there are")
        return model


# Classifiers and feature backbones


def _fit_classifier(
    config: XCiTConfig, stored: StoredWeights, stated: XCiTConfig | None, num_classes: int | None
) -> XCiTConfig:
    """Implements `fit` for classifiers.

    If `num_classes` is given, the file may have another number of classes; the model then gets the file's head, if any.
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
    """Returns the info of a DINO backbone (one preprocessing, no classes), or of a file with its own normalisation."""
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


# Models with a head on the pyramid


def _fit_head(
    config_from_weights: Callable[[StoredWeights], Any], *names: str
) -> Callable[[Any, StoredWeights, Any | None, int | None], Any]:
    """Returns the `fit` of a kind: the file keeps its classes, but its backbone and these fields must be as wanted."""

    def fit(config: Any, stored: StoredWeights, stated: Any | None, num_classes: int | None) -> Any:
        found = config_from_weights(stored) if stated is None else stated
        for name in names:
            if getattr(found, name) != getattr(config, name):
                raise XCiTError(
                    f"{stored.path}: the weights of another head: {name} is {getattr(found, name)}, the model's "
                    f"{getattr(config, name)}"
                )
        check_backbone(config.backbone, stored.state, str(stored.path))
        return replace(config, num_classes=found.num_classes) if stated is None else found

    return fit


def _segmenter_config(stored: StoredWeights) -> SegmenterConfig:
    state = stored.dense
    kind: SegmenterKind = "upernet" if stored.head == "upernet" else "sem-fpn"
    try:
        num_classes, channels = state["head.classifier.weight"].shape[:2]
        auxiliary = state["auxiliary.classifier.weight"].shape[1] if kind == "upernet" else None
    except (KeyError, ValueError, IndexError) as error:
        raise XCiTError(f"{stored.path}: not the weights of a segmenter: no tensor {error}") from None
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
    try:
        box_features = stored.dense["roi_heads.box_head.fc7.weight"].shape[0]
        num_classes, channels = stored.dense["roi_heads.mask_predictor.mask_fcn_logits.weight"].shape[:2]
    except (KeyError, ValueError, IndexError) as error:
        raise XCiTError(f"{stored.path}: not the weights of a detector: no tensor {error}") from None
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
"""The table, by name."""


def all_heads() -> Heads:
    """Returns the heads of all kinds."""
    return {head: rows for kind in KINDS.values() for head, rows in kind.heads.items()}


def kind_of_config(config: object) -> Kind[Any, Any, Any]:
    """Returns the kind of a model with this config."""
    return next(kind for kind in KINDS.values() if type(config) is kind.config)


def kind_of_task(task: str) -> Kind[Any, Any, Any] | None:
    """Returns the kind that does a task; None if there is none."""
    return next((kind for kind in KINDS.values() if kind.task == task), None)


def kind_of_weights(stored: StoredWeights) -> Kind[Any, Any, Any]:
    """Returns the kind of weights without metadata, by their head; without a known head they are an XCiT's."""
    return next((kind for kind in KINDS.values() if stored.head in kind.heads), CLASSIFIER)
