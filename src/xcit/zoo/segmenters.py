"""The records (see `zoo/records.py`) of the 16 published segmenters for ADE20K."""

from xcit.images.preprocess import SegmentationPreprocessing
from xcit.models import SegmenterConfig, XCiTConfig
from xcit.models.segmentation import SegmenterKind
from xcit.weights.fetch import Source
from xcit.zoo.architectures import ARCHITECTURES, backbone_of
from xcit.zoo.records import Figure, SegmenterRecord

# Columns: architecture; mIoU of UperNet and of Semantic FPN, measured by the authors.
_PUBLISHED: tuple[tuple[str, float, float], ...] = (
    ("tiny-12-p16", 41.5, 38.1),
    ("tiny-12-p8", 43.5, 39.9),
    ("small-12-p16", 45.9, 43.9),
    ("small-12-p8", 46.6, 44.2),
    ("small-24-p16", 46.9, 44.6),
    ("small-24-p8", 48.1, 47.1),
    ("medium-24-p16", 47.6, 45.9),
    ("medium-24-p8", 48.4, 46.9),
)

SEGMENTER_ARCHITECTURES = tuple(architecture for architecture, _, _ in _PUBLISHED)
"""The architectures for which segmenters were published."""


def segmenter_config(kind: SegmenterKind, architecture: XCiTConfig, num_classes: int = 150) -> SegmenterConfig:
    """Returns the config of a segmenter as published, with this head and architecture."""
    channels = 512 if kind == "upernet" else 128
    return SegmenterConfig(kind=kind, backbone=backbone_of(architecture), channels=channels, num_classes=num_classes)


def segmenter_name(kind: SegmenterKind, architecture: str) -> str:
    """Returns the name of a published segmenter, which is also the name of its recipe."""
    return f"{kind}_xcit-{architecture}_{'160k' if kind == 'upernet' else '80k'}_ade20k"


def _record(kind: SegmenterKind, architecture: str, miou: float) -> SegmenterRecord:
    name = segmenter_name(kind, architecture)
    file = f"{kind.replace('-', '_')}_xcit_{architecture.replace('-', '_')}"
    return SegmenterRecord(
        name=name,
        # Aliases: the name of the authors' config, the name of their file, and the name without schedule and data set.
        aliases=(name.replace("-", "_"), file, f"{kind}_xcit-{architecture}"),
        architecture=architecture,
        model=segmenter_config(kind, ARCHITECTURES[architecture]),
        recipe=name,
        dataset="ADE20K",
        preprocessing=SegmentationPreprocessing(),
        figures=(Figure(measured_by="official", metric="mIoU", value=miou),),
        sources=(
            Source(kind="url", location=f"https://dl.fbaipublicfiles.com/xcit/ade/{file}.pth", filename=f"{file}.pth"),
        ),
    )


SEGMENTERS: dict[str, SegmenterRecord] = {
    record.name: record
    for architecture, upernet, sem_fpn in _PUBLISHED
    for record in (_record("upernet", architecture, upernet), _record("sem-fpn", architecture, sem_fpn))
}
"""The records of all published segmenters, by name."""
