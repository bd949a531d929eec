"""The description inside an exported file: its model's shape, class names, preprocessing, and origin."""

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
"""The key of the `Facts`, as JSON. `METADATA_KEY` has the same content as in our safetensors files."""

VERSION = 1
"""Version of the facts. A file with a later version is refused."""

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FeatureOutput:
    """Features that a file returns instead of logits, one output per block; see `XCiT.extract_feat`."""

    out_type: OutType = "cls_token"
    layers: tuple[int, ...] = (-1,)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How a file was exported.

    Attributes:
        version: version of these facts.
        precision: precision of the weights and of the computation; images and outputs are float32 in every file.
        size: height and width of its images in pixels; None if it takes every size.
        features: the features that it returns instead of logits, with blocks counted from 0; None if it returns logits
            or detections.
        normalizes: whether the graph subtracts the mean and divides by the standard deviation, so that it takes values
            in 0..1. The preprocessing in the file then has the mean 0 and the standard deviation 1.
        source: the name or file that the model came from.
        licence: licence of the weights; "" if it is not known.
        made_by: the versions of this package and of torch.
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
    """The whole description in a file: the kind, shape and info of its model, and the facts."""

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
        """The graph's inputs: images (B, C, h, w); for a detector one padded image, its size (2,) and scale (4,)."""
        return ("images", "size", "scale") if self.kind is DETECTOR else ("images",)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The graph's outputs, in this order."""
        if self.kind is DETECTOR:
            return ("boxes", "labels", "scores", "masks")
        features = self.facts.features
        return ("logits",) if features is None else tuple(f"block_{block}" for block in features.layers)

    def sentence(self) -> str:
        """Returns a description of the outputs for the user."""
        features = self.facts.features
        if features is None:
            return "boxes, labels, scores and masks" if self.kind is DETECTOR else "logits"
        return f"{features.out_type} of {'block' if len(features.layers) == 1 else 'blocks'} " + ", ".join(
            map(str, features.layers)
        )

    def texts(self) -> dict[str, str]:
        """Returns the sheet as the metadata of a file."""
        stated = model_metadata(self.config, self.info)[METADATA_KEY]
        return {METADATA_KEY: stated, EXPORT_KEY: json.dumps(to_dict(self.facts))}


def read_sheet(texts: Mapping[str, str], what: str) -> Sheet:
    """Returns the sheet in a file's metadata.

    Args:
        texts: the metadata.
        what: name of the file, for error messages.

    Raises:
        XCiTError: if the metadata contain no sheet, or one of a later version.
    """
    if METADATA_KEY not in texts or EXPORT_KEY not in texts:
        raise XCiTError(f"{what}: was not written by xcit export: it does not say which model it is")
    try:
        content = json.loads(texts[EXPORT_KEY])
    except ValueError as error:
        raise XCiTError(f"{what}: its metadata can't be read: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version > VERSION:
        made_by = content.get("made_by", "another program") if isinstance(content, dict) else "another program"
        raise XCiTError(
            f"{what}: was written by {made_by}, in version {version} of what travels with a model; this one reads up "
            f"to {VERSION}: export it again, or use a newer xcit"
        )
    stated = statement_of(texts[METADATA_KEY], what)
    facts = from_dict(Facts, content, where=f"{what}: ")
    if facts.features is not None and stated.kind is not CLASSIFIER:
        raise XCiTError(f"{what}: its metadata can't be read: a {stated.kind.name} gives no features")
    return Sheet(kind=stated.kind, config=stated.config, info=stated.info, facts=facts)
