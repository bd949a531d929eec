"""Our own recipes that start from a published checkpoint: for larger images, or for other classes."""

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
    """Our own recipe: the distilled 224-pixel checkpoint, fine-tuned for 30 epochs at 384 pixels with batch size 512.

    `xcit train xcit-small-12-p16_ours-ft384_in1k --data IMAGENET`. The authors never published their settings and refer
    to DeiT. The 30 epochs, the batch size and the weight decay of 1e-8 are those of DeiT's own fine-tuning at 384
    pixels (arXiv 2012.12877). The learning rate of 5e-5 is the one that XCiT's authors gave for fine-tuning. All other
    settings are those of the `official` recipe. The expected top-1 is unknown, because nobody has run this yet; the
    goal is the 384-pixel checkpoint's figure in `xcit info`. The authors' 384-pixel models kept their teacher:
    `--distillation.teacher timm/regnety_160.deit_in1k`.
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
    """Our own recipe: the distilled 224-pixel checkpoint, fine-tuned on a folder with your own classes.

    `xcit train xcit-small-12-p16_transfer --data FOLDER`, with FOLDER/train/<class>/<image> and FOLDER/val/...; it
    needs a few hundred images or more. If the folder has no train and val, a fifth of its images (or `--holdout N` of
    them) is used for validation instead of training. The number of classes is the folder's. The recipe trains for 20
    epochs with batch size 32, light augmentation, and lower learning rates for layers far from the head. The accuracy
    depends on the images; we chose the settings without tuning them on a benchmark.
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
            # With this, the first block learns at about the same rate in models of 12 and of 24 blocks.
            layer_decay=0.75 if config.depth == 12 else 0.86,
        ),
        schedule=ScheduleConfig(epochs=20, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-6),
        run=RunConfig(batch_size=32, log_every=10),
    )


def multi_label(architecture: str) -> MultiLabelConfig:
    """Our own recipe: the distilled 224-pixel checkpoint, fine-tuned on images with any number of classes each.

    `xcit train xcit-small-12-p16_multi-label --data FOLDER`, with FOLDER/train.csv and FOLDER/val.csv beside the
    images. A line has a path and class names, or a path and a 0 or 1 for each class. The loss is binary for each class,
    and the best checkpoint is chosen by mean average precision. All other settings are those of the `transfer`
    recipe, without label smoothing. The mAP depends on the images; we chose the settings without tuning them on a
    benchmark.
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
