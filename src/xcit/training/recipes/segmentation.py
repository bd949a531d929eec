"""Semantic segmentation recipes: one for each of the 16 published segmenters, and two for scenes of garments."""

from dataclasses import replace

from xcit.data.segmentation_transforms import SegmentationAugmentation
from xcit.images.preprocess import SegmentationPreprocessing
from xcit.models.segmentation import SegmenterKind
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.recipes.official import drop_path_rate
from xcit.training.tasks.segmentation import SegmentationConfig
from xcit.zoo.architectures import ARCHITECTURES
from xcit.zoo.segmenters import segmenter_config, segmenter_name


def segmentation(kind: SegmenterKind, architecture: str) -> SegmentationConfig:
    """The authors' schedule for ADE20K: 160,000 steps for UperNet or 80,000 for Semantic FPN, global batch size 16.

    The command is `torchrun --nproc-per-node 8 -m xcit train upernet_xcit-small-12-p16_160k_ade20k --data
    ADEChallengeData2016`. The initial weights of the backbone are those of the distilled 384-pixel classifier of the
    same architecture, as in the authors' example for small-12-p16. For the other architectures, the authors did not say
    which initial weights they used. The expected mIoU is unknown, because nobody has run this recipe yet. The goal is
    the mIoU of the published segmenter, which `xcit info` prints.

    An epoch of this recipe is a tenth of the run, because the authors evaluated their models ten times in a run. This
    recipe differs from the authors' training in one point: it changes hue and saturation in Pillow's 8-bit HSV, and the
    authors used OpenCV's 8-bit HSV.
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


def segmentation_fashion_scenes(kind: SegmenterKind) -> SegmentationConfig:
    """Our own recipe: a segmenter with a pico XCiT for scenes of garments, trained in 20 minutes on two CPU cores.

    The commands are `xcit make-data fashion-scenes --task segmentation --out SCENES` and then `xcit train
    upernet_xcit-pico_fashion-scenes --data SCENES`. There are 11 classes, including the background.
    """
    architecture = replace(ARCHITECTURES["pico-6-p4"], in_channels=3)
    model = segmenter_config(kind, architecture, num_classes=11)
    return SegmentationConfig(
        name=f"{kind}_xcit-pico_fashion-scenes",
        model=replace(model, channels=64, auxiliary_channels=32),
        preprocessing=SegmentationPreprocessing(long_side=0, short_side=0, mean=(0.4,) * 3, std=(0.25,) * 3),
        augmentation=SegmentationAugmentation(scale=(0.75, 1.5), crop_size=96, max_class_share=1.0, distort=False),
        optimizer=OptimizerConfig(lr=2e-3, weight_decay=0.01, clip_grad=1.0, undecayed="layer_norms"),
        schedule=ScheduleConfig(
            kind="linear", epochs=12, warmup_epochs=0, warmup_steps=100, warmup_lr=1e-6, min_lr=0.0
        ),
        run=RunConfig(batch_size=16, num_workers=1, log_every=10, evaluate_every=3),
    )
