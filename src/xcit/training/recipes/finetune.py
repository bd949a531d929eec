"""Recipes of ours that start from a published checkpoint: a larger image, or other classes."""

from dataclasses import replace

from xcit.data.loader import AugmentationConfig
from xcit.images.preprocess import published_preprocessing
from xcit.training.engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from xcit.training.recipes.official import official
from xcit.training.tasks.classification import ClassificationConfig
from xcit.training.tasks.initialization import InitializeConfig
from xcit.training.tasks.multi_label import MultiLabelConfig
from xcit.zoo.architectures import ARCHITECTURES


def finetune_384(architecture: str) -> ClassificationConfig:
    """Ours, not the authors': the distilled 224-pixel checkpoint tuned for 30 epochs at 384 pixels, batch 512.

    `xcit train xcit-small-12-p16_ours-ft384_in1k --data IMAGENET`. The authors never published their numbers and point
    to DeiT. From DeiT's own step to 384 pixels (arXiv 2012.12877) are the 30 epochs, the batch and the weight decay of
    1e-8; the learning rate of 5e-5 is the one XCiT's authors named for fine-tuning; all else is the `official` recipe.
    Top-1 to expect: not known, for nobody has run it yet; the goal is the 384-pixel checkpoint's figure in `xcit info`.
    The authors' 384-pixel models kept their teacher: `--distillation.teacher timm/regnety_160.deit_in1k`.
    """
    base = official(architecture)
    return replace(
        base,
        name=f"xcit-{architecture}_ours-ft384_in1k",
        preprocessing=published_preprocessing("official", 384),
        initialize=InitializeConfig(weights=f"xcit-{architecture}_3rdparty-dist_in1k"),
        optimizer=OptimizerConfig(lr=5e-5, weight_decay=1e-8, undecayed="vectors_and_tokens"),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=5, warmup_lr=1e-6, min_lr=5e-6),
        run=replace(base.run, batch_size=512, max_device_batch=64),
    )


def transfer(architecture: str) -> ClassificationConfig:
    """Ours: the distilled 224-pixel checkpoint tuned on a folder of one's own classes, some hundred images or more.

    `xcit train xcit-small-12-p16_transfer --data FOLDER`, with FOLDER/train/<class>/<image> and FOLDER/val/...; a
    folder without these two is watched by a fifth of its images, or by `--holdout N`, which are not trained on. The
    number of classes is the folder's. 20 epochs, batch 32, layers far from the head learning less, light augmentation.
    Accuracy to expect: it depends on the images; the numbers were chosen by us, on no benchmark.
    """
    config = ARCHITECTURES[architecture]
    return ClassificationConfig(
        name=f"xcit-{architecture}_transfer",
        model=replace(config, num_classes=0),
        preprocessing=published_preprocessing("official", 224),
        holdout=None,
        initialize=InitializeConfig(weights=f"xcit-{architecture}_3rdparty-dist_in1k"),
        augmentation=AugmentationConfig(scale=(0.35, 1.0), label_smoothing=0.1),
        optimizer=OptimizerConfig(
            lr=3e-4,
            weight_decay=0.05,
            clip_grad=1.0,
            # The first block of either depth then learns at about the same rate.
            layer_decay=0.75 if config.depth == 12 else 0.86,
        ),
        schedule=ScheduleConfig(epochs=20, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-6),
        run=RunConfig(batch_size=32, log_every=10),
    )


def multi_label(architecture: str) -> MultiLabelConfig:
    """Ours: the distilled 224-pixel checkpoint tuned on images that may be of several classes each, or of none.

    `xcit train xcit-small-12-p16_multi-label --data FOLDER`, with FOLDER/train.csv and FOLDER/val.csv beside the
    images: a path and class names a line, or a path and 0 or 1 for each class. A binary loss for each class; the run is
    watched by mean average precision. All else is the `transfer` recipe, without label smoothing. mAP to expect: it
    depends on the images; the numbers were chosen by us, on no benchmark.
    """
    base = transfer(architecture)
    return MultiLabelConfig(
        name=f"xcit-{architecture}_multi-label",
        model=base.model,
        preprocessing=base.preprocessing,
        initialize=base.initialize,
        augmentation=replace(base.augmentation, label_smoothing=0.0),
        optimizer=base.optimizer,
        schedule=base.schedule,
        run=base.run,
    )
