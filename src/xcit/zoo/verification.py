"""Whether a weights file is what it should be: what `xcit verify` does."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from xcit.errors import XCiTError
from xcit.models import SegmenterConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.weights.fetch import Progress
from xcit.weights.files import digest, read_checkpoint
from xcit.weights.load import check_state, nonfinite
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.load import is_file, weights_path
from xcit.zoo.names import find_record
from xcit.zoo.stored import ModelConfig, describe, describe_detector, describe_segmenter, num_parameters, outline


@dataclass(frozen=True, kw_only=True)
class VerifiedWeights:
    """A file that is right. `digest` is over its tensors; `recorded` says whether the file names the same."""

    path: Path
    format: str
    digest: str
    recorded: bool
    architecture: str
    num_tensors: int
    params: int


def verify(name_or_path: str | os.PathLike[str], *, progress: Progress | None = None) -> VerifiedWeights:
    """Checks digest, names, shapes and values of a file or of a model of the zoo, fetched if it is not there.

    Raises:
        XCiTError: naming the first thing that is wrong.
    """
    if is_file(name_or_path):
        path, expected_config = Path(name_or_path), cast(ModelConfig | None, None)
    else:
        record = find_record(os.fspath(name_or_path))
        path, expected_config = weights_path(record, progress=progress), record.model
    stored = read_checkpoint(path)
    # Its own metadata or tensors tell what a detector is: of one it is not known for sure.
    if stored.dense_kind == "mask-rcnn":
        expected_config = describe_detector(stored)[0]
    found, recorded = digest(stored.whole), stored.metadata.get("digest")
    if recorded is not None and recorded != found:
        raise XCiTError(f"{path}: damaged: its tensors have digest {found}, the file says {recorded}")
    config = expected_config or (describe(stored) if stored.dense_kind is None else describe_segmenter(stored))[0]
    expected = outline(config)
    state = stored.state if stored.dense_kind is None else stored.dense
    check_state(expected, state, str(path))
    if bad := nonfinite(state):
        raise XCiTError(f"{path}: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]}")
    return VerifiedWeights(
        path=path,
        format=stored.format,
        digest=found,
        recorded=recorded is not None,
        architecture=_architecture(config),
        num_tensors=len(state),
        params=num_parameters(config),
    )


def _architecture(config: ModelConfig) -> str:
    if isinstance(config, SegmenterConfig):
        return f"{config.kind} on {_architecture(config.backbone)}"
    if isinstance(config, MaskRCNNConfig):
        return f"mask-rcnn on {_architecture(config.backbone)}"
    for name, known in ARCHITECTURES.items():
        fields = ("num_classes", "in_channels", "global_pool", "cls_depth", "drop_path_rate")
        if config == replace(known, **{field: getattr(config, field) for field in fields}):
            return name
    return "its own config"
