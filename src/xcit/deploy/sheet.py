"""The description inside an exported file: the model's shape, class names, preprocessing and origin."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xcit.config import from_dict, to_dict
from xcit.errors import XCiTError
from xcit.models.xcit import OutType
from xcit.zoo.kinds import CLASSIFIER, DETECTOR, Kind
from xcit.zoo.statement import METADATA_KEY, model_metadata, statement_of

EXPORT_KEY = "xcit.export"
"""The metadata key of the `Facts`, which are stored as JSON.

The other parts of a `Sheet` are stored under `METADATA_KEY`, as in safetensors files that this package writes.
"""

VERSION = 1
"""Version of the format of `Facts`. A file with a later version is rejected."""

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FeatureOutput:
    """The features that a file returns instead of logits, one output per block.

    Attributes:
        out_type: the type of feature, as in `XCiT.extract_feat`.
        layers: the blocks, as `out_indices` in `XCiT.extract_feat`.
    """

    out_type: OutType = "cls_token"
    layers: tuple[int, ...] = (-1,)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about the export of a file.

    Attributes:
        version: version of the format of these facts.
        precision: precision of the weights and of the computation; for OpenVINO, float16 only applies to the stored
            weights. Images and outputs are always float32.
        size: fixed height and width of the images in pixels; None if the file accepts every size.
        features: the features that the file returns, with blocks counted from 0; None if the file returns logits or
            detections.
        normalizes: if True, the graph accepts images with values in 0..1, subtracts the mean and divides by the
            standard deviation. The preprocessing in the file then has mean 0 and standard deviation 1.
        source: the published name or the path from which the model was loaded; "" if it is not known.
        licence: licence of the weights; "" if it is not known.
        made_by: the versions of this package and of torch that wrote the file.
    """

    version: int = VERSION
    precision: Precision = "float32"
    size: tuple[int, int] | None = None
    features: FeatureOutput | None = None
    normalizes: bool = False
    source: str = ""
    licence: str = ""
    made_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The complete description in a file.

    Attributes:
        kind: the kind of the model: classifier, segmenter or detector.
        config: the config (shape) of the model.
        info: the class names and preprocessing of the model; None if they are not known.
        facts: how the file was exported.
    """

    kind: Kind[Any, Any, Any]
    config: Any
    info: Any
    facts: Facts

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return int(self.kind.backbone(self.config).in_channels)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph's inputs: images (B, C, h, w); for a detector one padded image, its size and its scale."""
        return ("images", "size", "scale") if self.kind is DETECTOR else ("images",)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in their order."""
        if self.kind is DETECTOR:
            return ("boxes", "labels", "scores", "masks")
        features = self.facts.features
        return ("logits",) if features is None else tuple(f"block_{block}" for block in features.layers)

    def sentence(self) -> str:
        """Returns a short description of the outputs for messages, such as "logits"."""
        features = self.facts.features
        if features is None:
            return "boxes, labels, scores and masks" if self.kind is DETECTOR else "logits"
        return f"{features.out_type} of {'block' if len(features.layers) == 1 else 'blocks'} " + ", ".join(
            map(str, features.layers)
        )

    def texts(self) -> dict[str, str]:
        """Returns the description as metadata for a file: a dict of strings."""
        stated = model_metadata(self.config, self.info)[METADATA_KEY]
        return {METADATA_KEY: stated, EXPORT_KEY: json.dumps(to_dict(self.facts))}


def read_sheet(texts: Mapping[str, str], what: str) -> Sheet:
    """Reads the description from a file's metadata.

    Args:
        texts: the metadata.
        what: name of the file, for error messages.

    Raises:
        XCiTError: if the metadata contain no valid description, or a description of a later version.
    """
    if METADATA_KEY not in texts or EXPORT_KEY not in texts:
        raise XCiTError(f"{what}: was not written by xcit export: its metadata do not describe a model")
    try:
        content = json.loads(texts[EXPORT_KEY])
    except ValueError as error:
        raise XCiTError(f"{what}: its metadata can't be read: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version > VERSION:
        made_by = content.get("made_by", "another program") if isinstance(content, dict) else "another program"
        raise XCiTError(
            f"{what}: was written by {made_by}, with metadata of version {version}; this xcit reads versions up to "
            f"{VERSION}: export the model again, or use a newer xcit"
        )
    stated = statement_of(texts[METADATA_KEY], what)
    facts = from_dict(Facts, content, where=f"{what}: ")
    if facts.features is not None and stated.kind is not CLASSIFIER:
        raise XCiTError(f"{what}: its metadata can't be read: a {stated.kind.name} gives no features")
    return Sheet(kind=stated.kind, config=stated.config, info=stated.info, facts=facts)
