"""Recipes of semantic segmentation: the 16 published ones."""

from dataclasses import replace

from xcit.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.models import SegmentationPreprocessing
from xcit.models.segmentation import SegmenterKind
from xcit.recipes.official import drop_path_rate
from xcit.tasks.segmentation import SegmentationConfig
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.segmenters import segmenter_config, segmenter_name


def segmentation(kind: SegmenterKind, architecture: str) -> SegmentationConfig:
    """The authors' schedule for ADE20K: 160,000 steps of UperNet or 80,000 of Semantic FPN at a global batch of 16.

    `torchrun --nproc-per-node 8 -m xcit train upernet_xcit-small-12-p16_160k_ade20k --data ADEChallengeData2016`. The
    backbone starts from the distilled 384-pixel classifier of its architecture, as in the authors' example for
    small-12-p16; that they did so for the others too is not published. mIoU to expect: not known, for nobody has run it
    yet; the goal is the published segmenter's figure in `xcit info`.

    An epoch here is a tenth of the run, after which the authors' runs too were measured. Differences that remain: hue
    and saturation change in Pillow's 8-bit colours instead of OpenCV's.
    """
    model = segmenter_config(kind, ARCHITECTURES[architecture])
    depth_rate = drop_path_rate(architecture)
    if kind == "sem-fpn" and architecture.startswith("medium-24"):
        depth_rate = 0.2
    lr, is_upernet = 6e-5, kind == "upernet"
    return SegmentationConfig(
        name=segmenter_name(kind, architecture),
        model=replace(model, backbone=replace(model.backbone, drop_path_rate=depth_rate)),
        preprocessing=SegmentationPreprocessing(),
        backbone_weights=f"xcit-{architecture}_3rdparty-dist_in1k-384px",
        epoch_steps=16_000 if is_upernet else 8_000,
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.01, undecayed="layer_norms"),
        schedule=ScheduleConfig(
            kind="linear", epochs=10, warmup_epochs=0, warmup_steps=1500, warmup_lr=lr * 1e-6, min_lr=0.0
        ),
        run=RunConfig(batch_size=16, max_device_batch=2, sync_batch_norm=True),
    )
