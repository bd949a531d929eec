"""Detection recipes: one for each of the 8 published detectors, and one for scenes of Fashion-MNIST garments."""

from dataclasses import replace

from xcit.data.detection_transforms import DetectionAugmentation
from xcit.models.detection.config import MaskRCNNConfig
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.recipes.official import drop_path_rate
from xcit.training.tasks.detection import DetectionConfig
from xcit.zoo.architectures import ARCHITECTURES, backbone_of
from xcit.zoo.detectors import detector_config, detector_name


def detection(architecture: str) -> DetectionConfig:
    """The authors' schedule for COCO: 36 epochs of Mask R-CNN with global batch size 16 and multi-scale training.

    The command is `torchrun --nproc-per-node 8 -m xcit train mask-rcnn_xcit-small-12-p16_3x_coco --data COCO`. The
    initial weights of the backbone are those of the distilled 384-pixel classifier of the same architecture, as in the
    authors' example for small-12-p16. For the other architectures, the authors did not say which initial weights they
    used. The expected AP is unknown, because nobody has run this recipe yet. The goal is the AP of the published
    detector, which `xcit info` prints.

    This recipe differs from the authors' training in one point: it uses bfloat16, and the authors used float16
    (`--run.dtype float16`).
    """
    model, lr = detector_config(ARCHITECTURES[architecture]), 1e-4
    return DetectionConfig(
        name=detector_name(architecture),
        model=replace(model, backbone=replace(model.backbone, drop_path_rate=drop_path_rate(architecture))),
        backbone_weights=f"xcit-{architecture}_3rdparty-dist_in1k-384px",
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.05, undecayed="layer_norms"),
        schedule=ScheduleConfig(
            kind="milestones",
            milestones=(27, 33),
            epochs=36,
            warmup_epochs=0,
            warmup_steps=500,
            warmup_lr=lr * 1e-3,
            min_lr=0.0,
        ),
        run=RunConfig(batch_size=16, max_device_batch=2, sync_batch_norm=True, dtype="bfloat16"),
    )


def pico_fashion_scenes() -> DetectionConfig:
    """Our own recipe: Mask R-CNN with 0.7 M parameters for scenes of garments, trained in an hour on two CPU cores.

    The commands are `xcit make-data fashion-scenes --task detection --out SCENES` and then `xcit train
    mask-rcnn_xcit-pico_fashion-scenes --data SCENES`. The training images are not cropped, and their size changes only
    a little. The anchors are half as large as in the published detectors.
    """
    return DetectionConfig(
        name="mask-rcnn_xcit-pico_fashion-scenes",
        model=MaskRCNNConfig(
            backbone=replace(backbone_of(ARCHITECTURES["pico-6-p4"]), in_channels=3),
            num_classes=10,
            channels=32,
            box_features=128,
            anchor_scale=4.0,
            short_side=96,
            long_side=128,
            mean=(0.4,) * 3,
            std=(0.25,) * 3,
        ),
        augmentation=DetectionAugmentation(short_sides=(80, 96, 112), long_side=150, crop=0.0),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, clip_grad=1.0, undecayed="layer_norms"),
        schedule=ScheduleConfig(epochs=8, warmup_epochs=1, warmup_lr=1e-5, min_lr=1e-6),
        run=RunConfig(batch_size=8, num_workers=1, log_every=10, evaluate_every=4),
    )
