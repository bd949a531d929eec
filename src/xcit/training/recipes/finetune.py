"""Our own recipes, which fine-tune a published checkpoint on larger images or on other classes."""

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

    The command is `xcit train xcit-small-12-p16_ours-ft384_in1k --data IMAGENET`. XCiT's authors did not publish their
    settings for 384 pixels, but refer to DeiT. The 30 epochs, the batch size and the weight decay of 1e-8 are those of
    DeiT's own fine-tuning at 384 pixels (arXiv 2012.12877). The learning rate of 5e-5 is the value that XCiT's authors
    gave for fine-tuning. All other settings are those of the `official` recipe. The expected top-1 is unknown, because
    nobody has run this recipe yet. The goal is the top-1 of the published 384-pixel checkpoint, which `xcit info`
    prints. The authors also used a teacher at 384 pixels. The option
    `--distillation.teacher timm/regnety_160.deit_in1k` adds this teacher.
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

    The command is `xcit train xcit-small-12-p16_transfer --data FOLDER`. The images are in
    FOLDER/train/<class>/<image> and FOLDER/val/<class>/<image>. At least a few hundred images are needed. If the folder
    has no validation images, a fifth of the images is held out for validation. `--holdout N` holds out N images
    instead. The number of classes is taken from the folder. The recipe trains for 20 epochs with batch size 32, light
    augmentation, and lower learning rates for layers far from the head. The accuracy depends on the images. We chose
    the settings without tuning them on a benchmark.
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
            # With these values, the first block has about the same learning rate in models with 12 and with 24 blocks.
            layer_decay=0.75 if config.depth == 12 else 0.86,
        ),
        schedule=ScheduleConfig(epochs=20, warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-6),
        run=RunConfig(batch_size=32, log_every=10),
    )


def multi_label(architecture: str) -> MultiLabelConfig:
    """Our own recipe: the distilled 224-pixel checkpoint, fine-tuned on images that can have several classes.

    The command is `xcit train xcit-small-12-p16_multi-label --data FOLDER`. The folder contains the images and two
    lists, train.csv and val.csv. Each line of a list has the path of an image and its class names, or the path and a 0
    or 1 for each class. The loss is a binary cross-entropy for each class. The best checkpoint is selected by its mean
    average precision (mAP). There is no label smoothing. All other settings are those of the `transfer` recipe. The mAP
    depends on the images. We chose the settings without tuning them on a benchmark.
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
