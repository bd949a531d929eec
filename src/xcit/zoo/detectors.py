"""The records (see `zoo/records.py`) of the 8 published detectors for COCO."""

from xcit.models import XCiTConfig
from xcit.models.detection.config import MaskRCNNConfig
from xcit.weights.fetch import Source
from xcit.zoo.architectures import ARCHITECTURES, backbone_of
from xcit.zoo.records import DetectorRecord, Figure

# Columns: architecture; box AP and mask AP, measured by the authors.
_PUBLISHED: tuple[tuple[str, float, float], ...] = (
    ("tiny-12-p16", 42.7, 38.5),
    ("tiny-12-p8", 44.5, 40.3),
    ("small-12-p16", 45.3, 40.8),
    ("small-12-p8", 47.0, 42.3),
    ("small-24-p16", 46.5, 41.8),
    ("small-24-p8", 48.1, 43.0),
    ("medium-24-p16", 46.7, 42.0),
    ("medium-24-p8", 48.5, 43.7),
)

DETECTOR_ARCHITECTURES = tuple(architecture for architecture, _, _ in _PUBLISHED)
"""The architectures for which detectors were published."""

EITHER_PATCH = "mask-rcnn_xcit-medium-24-p16_3x_coco"
"""A model with patch size 16 in its name, but 8 in its published config. The patch size of its weights is used."""


def detector_config(architecture: XCiTConfig, num_classes: int = 80) -> MaskRCNNConfig:
    """Returns the config of a Mask R-CNN as published, with this architecture as its backbone."""
    return MaskRCNNConfig(backbone=backbone_of(architecture), num_classes=num_classes)


def detector_name(architecture: str) -> str:
    """Returns the name of a published detector, which is also the name of its recipe."""
    return f"mask-rcnn_xcit-{architecture}_3x_coco"


def _record(architecture: str, box_ap: float, mask_ap: float) -> DetectorRecord:
    name, with_underscores = detector_name(architecture), architecture.replace("-", "_")
    file = f"maskrcnn_xcit_{with_underscores}"
    return DetectorRecord(
        name=name,
        # Aliases: the name of the authors' config, the name of their file, and the name without schedule and data set.
        aliases=(f"mask_rcnn_xcit_{with_underscores}_3x_coco", file, f"mask-rcnn_xcit-{architecture}"),
        architecture=architecture,
        model=detector_config(ARCHITECTURES[architecture]),
        recipe=name,
        dataset="COCO",
        figures=(
            Figure(measured_by="official", metric="box AP", value=box_ap),
            Figure(measured_by="official", metric="mask AP", value=mask_ap),
        ),
        sources=(
            Source(kind="url", location=f"https://dl.fbaipublicfiles.com/xcit/coco/{file}.pth", filename=f"{file}.pth"),
        ),
    )


DETECTORS: dict[str, DetectorRecord] = {record.name: record for record in (_record(*row) for row in _PUBLISHED)}
"""The records of all published detectors, by name."""
